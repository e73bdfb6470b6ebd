package doctor

import "time"

// ClockFinding is what a server's clock that differs so much is worth.
func ClockFinding(difference time.Duration) Finding {
	p := &part{}
	tellClock(&checker{name: "postgres.clock", part: p}, "Postgres", difference, time.Millisecond)
	return p.findings[0]
}
