package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/authfence/authfence/event"
)

type logFlags struct {
	Level  string `default:"info" enum:"debug,info,warn,error" help:"Least level to log: ${enum}."`
	Format string `default:"text" enum:"text,json" help:"Shape of a log line: ${enum}."`
}

func (f logFlags) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.Level)); err != nil {
		return nil, fmt.Errorf("--log-level: %w", err)
	}
	options := &slog.HandlerOptions{Level: level}
	if f.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return slog.New(slog.NewTextHandler(w, options)), nil
}

type postgresFlags struct {
	PostgresURL     string `placeholder:"URL" help:"Primary of Postgres, reached directly and not through a transaction pooler, for instance postgres://authfence@db:5432/app?sslmode=verify-full. The usual PG* variables fill what it leaves out."`
	PostgresURLFile string `placeholder:"FILE" type:"path" help:"File that holds the value of --postgres-url, so that no password stands in the environment."`
}

// AfterApply lets a command read PostgresURL wherever it was given; kong calls it.
func (f *postgresFlags) AfterApply() error {
	if f.PostgresURLFile == "" {
		return nil
	}
	if f.PostgresURL != "" {
		return errors.New("--postgres-url, --postgres-url-file: give one of them")
	}
	var err error
	if f.PostgresURL, err = readSecret(f.PostgresURLFile); err != nil {
		return fmt.Errorf("--postgres-url-file: %w", err)
	}
	return nil
}

func (f postgresFlags) config() (*pgx.ConnConfig, error) {
	if f.PostgresURL == "" {
		return nil, missing("postgres-url", "postgres://user@host:5432/database")
	}
	config, err := pgx.ParseConfig(f.PostgresURL)
	if err != nil {
		return nil, usageError{fmt.Errorf("--postgres-url: %w; want for instance postgres://user@host:5432/database", err)}
	}
	return config, nil
}

type natsFlags struct {
	NATSURL    string `name:"nats-url" placeholder:"URL" help:"NATS servers, comma-separated, for instance nats://127.0.0.1:4222."`
	NATSCreds  string `name:"nats-creds" placeholder:"FILE" type:"path" help:"NATS credentials file (JWT and seed)."`
	NATSNkey   string `name:"nats-nkey" placeholder:"FILE" type:"path" help:"NATS nkey seed file."`
	NATSCA     string `name:"nats-ca" placeholder:"FILE" type:"path" help:"Certificate authority of the NATS servers, PEM. With it, or with a tls:// URL, a server without TLS is refused."`
	NATSCert   string `name:"nats-cert" placeholder:"FILE" type:"path" help:"Certificate for NATS servers that want one of their clients, PEM."`
	NATSKey    string `name:"nats-key" placeholder:"FILE" type:"path" help:"Private key of --nats-cert, PEM."`
	NATSInbox  string `name:"nats-inbox" placeholder:"SUBJECT" help:"Prefix of the inboxes that answers come to (default: PREFIX.inbox. and listener, node or operator, as deploy/nats allows them)."`
	NATSPrefix string `name:"nats-prefix" default:"authfence" help:"First part of every NATS subject; one for each system that shares a NATS."`
	NATSStream string `name:"nats-stream" placeholder:"NAME" help:"JetStream stream that captures the events (default: the prefix in capitals)."`
	NATSDomain string `name:"nats-domain" placeholder:"NAME" help:"JetStream domain of that stream, where it is not the one of the servers connected to (behind a leaf node)."`
}

func (f natsFlags) subjects() (event.Subjects, error) {
	s := event.Subjects{Prefix: f.NATSPrefix}
	if err := s.Validate(); err != nil {
		return s, usageError{fmt.Errorf("--nats-prefix: %w", err)}
	}
	return s, nil
}

func (f natsFlags) stream(s event.Subjects) string {
	if f.NATSStream != "" {
		return f.NATSStream
	}
	return s.Stream()
}

// connect opens a connection that reconnects for ever and that notices a dead
// peer within ten seconds (nats.go's own default is four minutes). A server that is not there
// yet is not an error: the caller's readiness tells.
func (f natsFlags) connect(name, role string, log *slog.Logger, more ...nats.Option) (*nats.Conn, error) {
	if f.NATSURL == "" {
		return nil, missing("nats-url", "nats://127.0.0.1:4222")
	}
	for server := range strings.SplitSeq(f.NATSURL, ",") {
		u, err := url.Parse(strings.TrimSpace(server))
		if err != nil || u.Host == "" {
			return nil, usageError{errors.New("--nats-url: want nats://host:port, comma-separated for several")}
		}
	}
	inbox := f.NATSInbox
	if inbox == "" {
		inbox = event.Subjects{Prefix: f.NATSPrefix}.Inbox(role)
	} else if err := (event.Subjects{Prefix: inbox}).Validate(); err != nil {
		return nil, usageError{errors.New("--nats-inbox: want words joined by dots, without spaces, * or >")}
	}
	var refused string // of the callbacks, which run one at a time
	options := []nats.Option{
		nats.Name(name),
		nats.CustomInboxPrefix(inbox),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(true),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(250*time.Millisecond, 250*time.Millisecond),
		nats.PingInterval(5 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.Timeout(2 * time.Second),
		nats.DisconnectErrHandler(func(nc *nats.Conn, err error) {
			if !nc.IsClosed() {
				log.Warn("nats disconnected", "err", err)
			}
		}),
		nats.ConnectHandler(func(nc *nats.Conn) { log.Info("nats connected", "server", nc.ConnectedAddr()) }),
		nats.ReconnectHandler(func(nc *nats.Conn) { log.Info("nats reconnected", "server", nc.ConnectedAddr()) }),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			// Once for each reason: a key that is not known, or a certificate, is for a person to mend.
			if reason := err.Error(); reason != refused {
				refused = reason
				log.Warn("nats refuses, or is not there; retrying", "err", err)
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			subject := ""
			if s != nil {
				subject = s.Subject
			}
			log.Warn("nats error", "subject", subject, "err", err)
		}),
	}
	if f.NATSCreds != "" {
		options = append(options, nats.UserCredentials(f.NATSCreds))
	}
	if f.NATSNkey != "" {
		nkey, err := nats.NkeyOptionFromSeed(f.NATSNkey)
		if err != nil {
			return nil, usageError{fmt.Errorf("--nats-nkey: %w", err)}
		}
		options = append(options, nkey)
	}
	secured, err := clientTLS("nats", f.NATSCA, f.NATSCert, f.NATSKey)
	if err != nil {
		return nil, err
	}
	if secured != nil {
		options = append(options, nats.Secure(secured))
	}
	nc, err := nats.Connect(f.NATSURL, append(options, more...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to nats: %w", err)
	}
	if !nc.IsConnected() {
		log.Warn("nats is not reachable yet; retrying", "attempt", 1) // the handler above says why
	}
	return nc, nil
}

type redisFlags struct {
	RedisURL      string `name:"redis-url" placeholder:"URL" help:"Redis, for instance redis://127.0.0.1:6379/0, rediss:// for TLS; several hosts comma-separated make a Cluster, with --redis-master Sentinels. Without it there is no second tier."`
	RedisMaster   string `name:"redis-master" placeholder:"NAME" help:"Master's name when --redis-url lists Sentinels."`
	RedisPassword string `name:"redis-password-file" placeholder:"FILE" type:"path" help:"File with the password of the user that --redis-url names; read anew for each connection, so that it can be changed."`
	RedisCA       string `name:"redis-ca" placeholder:"FILE" type:"path" help:"Certificate authority of the Redis servers, PEM; for rediss:// URLs."`
	RedisCert     string `name:"redis-cert" placeholder:"FILE" type:"path" help:"Certificate for Redis servers that want one of their clients, PEM."`
	RedisKey      string `name:"redis-key" placeholder:"FILE" type:"path" help:"Private key of --redis-cert, PEM."`
	RedisPrefix   string `name:"redis-prefix" default:"authfence" help:"First part of every Redis key."`
}

// client returns nil when no Redis is configured.
func (f redisFlags) client() (redis.UniversalClient, error) {
	if f.RedisURL == "" {
		return nil, nil
	}
	first, rest, _ := strings.Cut(f.RedisURL, ",")
	parsed, err := redis.ParseURL(first)
	if err != nil {
		// Not wrapped: the text of url.Parse repeats the password.
		return nil, usageError{errors.New("--redis-url: want redis://host:port/0 or rediss://…, further hosts as host:port after commas")}
	}
	secured, err := f.tls(parsed.TLSConfig)
	if err != nil {
		return nil, err
	}
	options := &redis.UniversalOptions{
		Addrs: []string{parsed.Addr}, Username: parsed.Username, Password: parsed.Password, DB: parsed.DB,
		TLSConfig: secured, MasterName: f.RedisMaster, ContextTimeoutEnabled: true,
		// Open-source Redis knows no maintenance notifications; asking costs a
		// round trip on every connect.
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		DisableIdentity:          true, // CLIENT SETINFO is one more command to allow, and older servers have none
	}
	if f.RedisPassword != "" {
		if _, err := readSecret(f.RedisPassword); err != nil {
			return nil, usageError{fmt.Errorf("--redis-password-file: %w", err)}
		}
		options.CredentialsProviderContext = func(context.Context) (string, string, error) {
			password, err := readSecret(f.RedisPassword)
			return parsed.Username, password, err
		}
	}
	if rest != "" {
		options.Addrs = append(options.Addrs, strings.Split(rest, ",")...)
	}
	return redis.NewUniversalClient(options), nil
}

// tls completes what the scheme of the URL asks for.
func (f redisFlags) tls(fromURL *tls.Config) (*tls.Config, error) {
	files, err := clientTLS("redis", f.RedisCA, f.RedisCert, f.RedisKey)
	switch {
	case err != nil:
		return nil, err
	case fromURL == nil && files != nil:
		return nil, usageError{errors.New("--redis-ca, --redis-cert: the URL says redis://, want rediss:// for TLS")}
	case fromURL == nil:
		return nil, nil
	}
	// Each server is to prove its own name, not that of the first in the list.
	fromURL.ServerName = ""
	if files != nil {
		fromURL.RootCAs, fromURL.Certificates = files.RootCAs, files.Certificates
	}
	return fromURL, nil
}

func missing(flag, example string) error {
	variable := "AUTHFENCE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
	return usageError{fmt.Errorf("--%s is missing: give it, or set %s, for instance to %s", flag, variable, example)}
}

// nodeName is the name given, or one made of the host and the process, unique
// among the living.
func nodeName(given string) string {
	if given != "" {
		return given
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "node"
	}
	return fmt.Sprintf("%s-%d", host, os.Getpid())
}
