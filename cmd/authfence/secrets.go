package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
)

// clientTLS is TLS as a client, from the files that --SERVICE-ca, -cert and -key
// name; nil when none is named. The servers are checked against the authority
// given, or against the system's.
func clientTLS(service, ca, cert, key string) (*tls.Config, error) {
	if ca == "" && cert == "" && key == "" {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca) // #nosec G304 -- as in file.go
		if err != nil {
			return nil, usageError{fmt.Errorf("--%s-ca: %w", service, err)}
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usageError{fmt.Errorf("--%s-ca: %s holds no PEM certificate", service, ca)}
		}
	}
	switch {
	case cert == "" && key == "":
	case cert == "" || key == "":
		return nil, usageError{fmt.Errorf("--%[1]s-cert and --%[1]s-key: give both or neither", service)}
	default:
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, usageError{fmt.Errorf("--%s-cert: %w", service, err)}
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// readSecret reads a file of one line; its errors never repeat it.
func readSecret(path string) (string, error) {
	body, err := os.ReadFile(path) // #nosec G304 -- as in file.go
	if err != nil {
		return "", err
	}
	secret := strings.TrimRight(string(body), "\r\n")
	if secret == "" || strings.ContainsAny(secret, "\r\n") {
		return "", errors.New(path + " must hold one line")
	}
	return secret, nil
}
