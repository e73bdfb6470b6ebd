package listener

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
)

// statements are those of a drain, prepared once for the session and sent
// through pgconn: a change waits for them on every node, and pgx's own batches
// cost a quarter of the round trip.
type statements struct {
	begin, lock, delete, advance, commit *pgconn.StatementDescription

	promise *pgconn.StatementDescription // nil: the schema knows none, or writers notify nobody
}

func (s *session) prepareStatements(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*s.l.settings.SessionTimeout)
	defer cancel()
	type statement struct {
		into      **pgconn.StatementDescription
		name, sql string
	}
	all := []statement{
		{&s.begin, "begin", "BEGIN"},
		{&s.lock, "lock", sqlLock},
		{&s.delete, "delete", fmt.Sprintf(sqlDelete, s.portion())},
		{&s.advance, "advance", sqlAdvance},
		{&s.commit, "commit", "COMMIT"},
	}
	if !s.l.settings.NotifyOff {
		var may bool
		if err := s.conn.QueryRow(ctx, sqlMayPromise).Scan(&may); err != nil {
			return explain("look for authfence.polling", err)
		}
		if may {
			all = append(all, statement{&s.promise, "promise", sqlPromise})
		}
	}
	for _, st := range all {
		var err error
		if *st.into, err = s.conn.PgConn().Prepare(ctx, "authfence_"+st.name, st.sql, nil); err != nil {
			return explain("prepare "+st.name, err)
		}
	}
	return nil
}

var (
	binaryFormat = []int16{1} // of all parameters, of all columns

	errAnswer = errors.New("an answer of postgres is missing")
)

// bigint is a bigint in binary form.
func bigint(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// execute reads the next answer of a pipeline, without its rows.
func execute(round *pgconn.Pipeline) (pgconn.CommandTag, error) {
	answer, err := next(round)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	return answer.Close()
}

// eachRow reads the rows of the next answer of a pipeline; they are valid until
// do returns. Raw: a backlog is a few hundred thousand rows a second, and
// scanning by reflection would be the slowest part.
func eachRow(round *pgconn.Pipeline, do func(row [][]byte) error) (int, error) {
	answer, err := next(round)
	if err != nil {
		return 0, err
	}
	n := 0
	for answer.NextRow() {
		n++
		if err := do(answer.Values()); err != nil {
			_, closeErr := answer.Close()
			return n, errors.Join(err, closeErr)
		}
	}
	_, err = answer.Close()
	return n, err
}

func next(round *pgconn.Pipeline) (*pgconn.ResultReader, error) {
	results, err := round.GetResults()
	if err != nil {
		return nil, err
	}
	answer, ok := results.(*pgconn.ResultReader)
	if !ok {
		return nil, errAnswer
	}
	return answer, nil
}
