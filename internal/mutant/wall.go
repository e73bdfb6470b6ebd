package mutant

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// WallFile is the environment variable by which a process built with
// [Build.WallClock] is told a file: by as much as it says (see [StepWall]) the
// wall clock that the process sees is ahead of the machine's, a few milliseconds
// after the file was written. A process that is to step its own clock has
// time.StepWallClock; a binary of internal/chaos is wired to it.
const WallFile = "AUTHFENCE_WALL_FILE"

// StepWall tells the processes that were given the file by how much their wall
// clock is ahead of the machine's.
func StepWall(file string, ahead time.Duration) error {
	// Renamed into place, so that nobody reads half of it.
	next := file + ".next"
	if err := os.WriteFile(next, []byte(strconv.FormatInt(int64(ahead), 10)), 0o600); err != nil {
		return fmt.Errorf("step wall clock: %w", err)
	}
	if err := os.Rename(next, file); err != nil {
		return fmt.Errorf("step wall clock: %w", err)
	}
	return nil
}

const (
	// What of Go's own source is changed. A Go that reads its clock elsewhere
	// fails the test of this package.
	nowReads = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	nowSteps = nowReads + "\tsec, nsec = stepWall(sec, nsec)\n"
)

// stepping is a file of package time.
const stepping = `package time

import (
	"sync/atomic"
	"syscall"
)

var stepByFile, stepByOrder atomic.Int64

// StepWallClock sets by how much the wall clock of this process is ahead.
func StepWallClock(ahead Duration) { stepByOrder.Store(int64(ahead)) }

// The file is read by a goroutine of its own: the runtime itself calls Now, for
// channels of timers, on a stack that no system call can be made from.
func init() {
	path, ok := syscall.Getenv("` + WallFile + `")
	if !ok || path == "" {
		return
	}
	stepByFile.Store(stepFromFile(path))
	go func() {
		for {
			Sleep(2 * Millisecond)
			stepByFile.Store(stepFromFile(path))
		}
	}()
}

func stepWall(sec int64, nsec int32) (int64, int32) {
	ahead := stepByOrder.Load() + stepByFile.Load()
	if ahead == 0 {
		return sec, nsec
	}
	sum := int64(nsec) + ahead%1e9
	sec += ahead / 1e9
	if sum < 0 {
		sum += 1e9
		sec--
	} else if sum >= 1e9 {
		sum -= 1e9
		sec++
	}
	return sec, int32(sum)
}

func stepFromFile(path string) (ahead int64) {
	file, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer syscall.Close(file)
	var b [24]byte
	n, err := syscall.Read(file, b[:])
	if err != nil {
		return 0
	}
	sign := int64(1)
	for _, c := range b[:max(n, 0)] {
		switch {
		case c == '-':
			sign = -1
		case c >= '0' && c <= '9':
			ahead = 10*ahead + int64(c-'0')
		}
	}
	return sign * ahead
}
`

// chaosSteps has a node process of the chaos harness step its own clock.
const chaosSteps = `package chaos

import "time"

func init() { setWall = time.StepWallClock }
`

// wallClock adds to changed what makes time.Now listen.
func wallClock(from source, changed map[string][]byte) error {
	e := Edit{File: "src/time/time.go", Old: nowReads, New: nowSteps}
	if err := e.apply(from.goroot, changed); err != nil {
		return err
	}
	changed[filepath.Join(from.goroot, "src/time/step_wall.go")] = []byte(stepping)
	changed[filepath.Join(from.module, "internal/chaos/wall_steps.go")] = []byte(chaosSteps)
	return nil
}
