package secure_test

import (
	"crypto/tls"

	"github.com/nats-io/nats-server/v2/server"
)

func withCertificate(pair tls.Certificate) func(*server.Options) {
	return func(o *server.Options) {
		o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
		o.TLSTimeout = 5
	}
}
