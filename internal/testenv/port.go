package testenv

// Port is a TCP port on 127.0.0.1 that no other user of this package takes while it is held, for a server that keeps its
// port over restarts.
type Port struct{ place *place }

// TakePort picks a free port. Close gives it back.
func TakePort() (*Port, error) {
	p := &place{}
	if err := p.takePort(); err != nil {
		return nil, err
	}
	return &Port{place: p}, nil
}

// Number returns the port.
func (p *Port) Number() int { return p.place.port }

// Close gives the port back.
func (p *Port) Close() error { return p.place.mark.Close() }
