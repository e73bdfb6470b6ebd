package chaos

import (
	"errors"
	"sync/atomic"
	"time"
)

// setWall steps the wall clock that this process sees. It is there only in a
// build whose time.Now was made to listen.
var setWall func(offset time.Duration)

var wallOffset atomic.Int64

func stepWallClock(step time.Duration) error {
	if setWall == nil {
		return errors.New("this build's wall clock cannot be stepped")
	}
	setWall(time.Duration(wallOffset.Add(int64(step))))
	return nil
}

func wallStepped() time.Duration { return time.Duration(wallOffset.Load()) }
