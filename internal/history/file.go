package history

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"os"
	"sync"
	"time"
)

// Record is an answer as a process under test writes it down: rows by index.
type Record struct {
	Start, End          time.Duration // by Now
	Demand              time.Duration // as in Answer
	Key, Organization   uint32
	KeyVersion          int32
	OrganizationVersion int32
	Outcome             Outcome
	Node                uint8
}

// A file of answers is a header and records of one size, little-endian:
//
//	start, end, demand  3 x 8 bytes
//	key, organization, key version, organization version  4 x 4
//	outcome, node  2 x 1
//	zero  2
//	CRC-32C of the 44 bytes before  4
const (
	header      = "authfence history 1\n"
	RecordBytes = 48
	sumAt       = RecordBytes - 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrRecord: a file of answers is damaged, other than by the death of its
// writer.
var ErrRecord = errors.New("malformed record")

// Recorder writes answers to a file. What was flushed survives the SIGKILL of
// the process; a process that is killed while it writes leaves at most one torn
// record at the end. Each process, and each start of one, needs a file of its
// own. It is safe for concurrent use.
type Recorder struct {
	mu     sync.Mutex
	w      *bufio.Writer
	failed error
}

// NewRecorder writes the header.
func NewRecorder(w io.Writer) (*Recorder, error) {
	r := &Recorder{w: bufio.NewWriterSize(w, RecordBytes*512)}
	if _, err := r.w.WriteString(header); err != nil {
		return nil, fmt.Errorf("write header of history: %w", err)
	}
	return r, r.Flush()
}

// Append adds a record. An error stays: nothing may be missing in between.
func (r *Recorder) Append(rec Record) error {
	var b [RecordBytes]byte
	rec.encode(&b)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed != nil {
		return r.failed
	}
	if _, err := r.w.Write(b[:]); err != nil {
		r.failed = fmt.Errorf("write record of history: %w", err)
	}
	return r.failed
}

// Flush hands what was appended to the operating system. Call it a few times a
// second: what was not flushed is lost with the process.
func (r *Recorder) Flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed != nil {
		return r.failed
	}
	if err := r.w.Flush(); err != nil {
		r.failed = fmt.Errorf("flush history: %w", err)
	}
	return r.failed
}

func (rec Record) encode(b *[RecordBytes]byte) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], uint64(rec.Start))
	le.PutUint64(b[8:], uint64(rec.End))
	le.PutUint64(b[16:], uint64(rec.Demand))
	le.PutUint32(b[24:], rec.Key)
	le.PutUint32(b[28:], rec.Organization)
	le.PutUint32(b[32:], uint32(rec.KeyVersion))
	le.PutUint32(b[36:], uint32(rec.OrganizationVersion))
	b[40], b[41] = byte(rec.Outcome), rec.Node
	le.PutUint32(b[sumAt:], crc32.Checksum(b[:sumAt], castagnoli))
}

// decodeRecord refuses what no Recorder writes.
func decodeRecord(b *[RecordBytes]byte) (Record, error) {
	le := binary.LittleEndian
	if le.Uint32(b[sumAt:]) != crc32.Checksum(b[:sumAt], castagnoli) {
		return Record{}, fmt.Errorf("%w: its checksum does not fit", ErrRecord)
	}
	rec := Record{
		Start: time.Duration(le.Uint64(b[0:])), End: time.Duration(le.Uint64(b[8:])), Demand: time.Duration(le.Uint64(b[16:])),
		Key: le.Uint32(b[24:]), Organization: le.Uint32(b[28:]),
		KeyVersion: int32(le.Uint32(b[32:])), OrganizationVersion: int32(le.Uint32(b[36:])),
		Outcome: Outcome(b[40]), Node: b[41],
	}
	switch {
	case b[42] != 0 || b[43] != 0:
		return Record{}, fmt.Errorf("%w: padding that is not zero", ErrRecord)
	case rec.Outcome >= outcomes:
		return Record{}, fmt.Errorf("%w: %v", ErrRecord, rec.Outcome)
	case rec.Start < 0 || rec.End < rec.Start:
		return Record{}, fmt.Errorf("%w: from %v to %v", ErrRecord, rec.Start, rec.End)
	case rec.Demand < 0 || rec.Demand > rec.Start:
		return Record{}, fmt.Errorf("%w: begun at %v, it demands %v", ErrRecord, rec.Start, rec.Demand)
	}
	return rec, nil
}

// Records reads a file of answers. A torn header or last record is the end of a
// process that was killed and is left out; anything else that is malformed ends
// the reading with an error.
func Records(from io.Reader) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		in := bufio.NewReaderSize(from, RecordBytes*1024)
		var head [len(header)]byte
		switch n, err := io.ReadFull(in, head[:]); {
		case n < len(head) && header[:n] != string(head[:n]), n == len(head) && string(head[:]) != header:
			yield(Record{}, fmt.Errorf("%w: this is no file of answers", ErrRecord))
			return
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return
		case err != nil:
			yield(Record{}, fmt.Errorf("read history: %w", err))
			return
		}
		var b [RecordBytes]byte
		for n := 0; ; n++ {
			switch _, err := io.ReadFull(in, b[:]); {
			case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
				return
			case err != nil:
				yield(Record{}, fmt.Errorf("read history: %w", err))
				return
			}
			rec, err := decodeRecord(&b)
			if err != nil {
				yield(Record{}, fmt.Errorf("record %d: %w", n, err))
				return
			}
			if !yield(rec, nil) {
				return
			}
		}
	}
}

// AddRecord judges a record.
func (j *Judge) AddRecord(rec Record) error {
	if int(rec.Key) >= len(j.run.Keys) || int(rec.Organization) >= len(j.run.Organizations) {
		return fmt.Errorf("%w: key %d of %d, organization %d of %d", ErrRecord,
			rec.Key, len(j.run.Keys), rec.Organization, len(j.run.Organizations))
	}
	j.Add(Answer{
		Start: rec.Start, End: rec.End, Demand: rec.Demand,
		Key: j.run.Keys[rec.Key], Organization: j.run.Organizations[rec.Organization],
		KeyVersion: rec.KeyVersion, OrganizationVersion: rec.OrganizationVersion,
		Outcome: rec.Outcome, Node: rec.Node,
	})
	return nil
}

// AddFile judges the answers of a file, as a stream.
func (j *Judge) AddFile(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open history: %w", err)
	}
	defer file.Close()
	for rec, err := range Records(file) {
		if err == nil {
			err = j.AddRecord(rec)
		}
		if err != nil {
			return fmt.Errorf("judge %s: %w", path, err)
		}
	}
	return nil
}
