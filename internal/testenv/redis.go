package testenv

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/authfence/authfence/internal/testenv/machine"
)

// RedisOptions choose how a Redis is run.
type RedisOptions struct {
	// Args are added to the command line and win over ours (no persistence), as in "--maxmemory", "10mb".
	Args []string
	// ConfigFile is read before them. It needs the machine's own redis-server.
	ConfigFile string
	// TLS makes the port one of TLS, for which Args or ConfigFile name the certificate; it is what a client verifies
	// the server with.
	TLS *tls.Config
}

// RedisServer is a server on a port of its own. Its methods are for one goroutine at a time, but Addr and URL are for any.
type RedisServer struct {
	options RedisOptions
	place   *place
	program machine.Program // zero: a container
	process *process
}

// StartRedis starts a server; it answers when it returns. Close it.
func StartRedis(ctx context.Context, options RedisOptions) (_ *RedisServer, err error) {
	r := &RedisServer{options: options}
	r.program, err = machine.FindRedis(ctx)
	if err != nil && (options.ConfigFile != "" || options.TLS != nil || !machine.DockerAnswers(ctx)) {
		return nil, err
	}
	if r.place, err = newPlace("redis"); err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		err := r.start(ctx)
		if err == nil {
			return r, nil
		}
		if attempt == startAttempts || ctx.Err() != nil || portFree(r.place.port) {
			return nil, errors.Join(err, r.Close())
		}
		if err := r.place.takePort(); err != nil {
			return nil, errors.Join(err, r.Close())
		}
	}
}

func (r *RedisServer) start(ctx context.Context) error {
	args := append([]string{"--save", "", "--appendonly", "no"}, r.options.Args...)
	var cmd *exec.Cmd
	if r.program.Path == "" {
		cmd = exec.Command("docker", containerArgs(r.container(), machine.RedisImage, r.place.port, 6379, nil,
			append([]string{"redis-server"}, args...))...)
	} else {
		ports := []string{"--port", strconv.Itoa(r.place.port)}
		if r.options.TLS != nil {
			ports = []string{"--port", "0", "--tls-port", strconv.Itoa(r.place.port)}
		}
		args = slices.Concat([]string{"--bind", "127.0.0.1", "--dir", r.place.dir, "--daemonize", "no", "--logfile", ""}, ports, args)
		if r.options.ConfigFile != "" {
			args = append([]string{r.options.ConfigFile}, args...)
		}
		cmd = exec.Command(r.program.Path, args...)
		cmd.Dir = r.place.dir
	}
	log := &serverLog{path: filepath.Join(r.place.dir, "log")}
	if err := log.attach(cmd, nil); err != nil {
		return err
	}
	defer log.close()
	process, err := startProcess(cmd, signalTerminate)
	if err != nil {
		return err
	}
	r.process = process
	err = poll(ctx, func() (bool, error) {
		if process.exited() {
			return false, fmt.Errorf("exited: %w", process.err)
		}
		return r.answers(ctx), nil
	})
	if err != nil {
		return fmt.Errorf("start redis: %w%s", errors.Join(err, r.Kill()), log.tail())
	}
	return nil
}

// answers says whether the server answers a PING: with PONG, or that it wants a password.
func (r *RedisServer) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var dialer interface {
		DialContext(context.Context, string, string) (net.Conn, error)
	} = new(net.Dialer)
	if r.options.TLS != nil {
		dialer = &tls.Dialer{Config: r.options.TLS}
	}
	connection, err := dialer.DialContext(ctx, "tcp", r.Addr())
	if err != nil {
		return false
	}
	defer connection.Close()
	deadline, _ := ctx.Deadline()
	if err := connection.SetDeadline(deadline); err != nil {
		return false
	}
	if _, err := connection.Write([]byte("PING\r\n")); err != nil {
		return false
	}
	line, err := bufio.NewReader(connection).ReadString('\n')
	return err == nil && (line == "+PONG\r\n" || len(line) > 7 && line[:7] == "-NOAUTH")
}

// Addr returns host and port; they do not change.
func (r *RedisServer) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.place.port)) }

// URL returns the address of database 0 as a URL.
func (r *RedisServer) URL() string {
	if r.options.TLS != nil {
		return "rediss://" + r.Addr() + "/0"
	}
	return "redis://" + r.Addr() + "/0"
}

// Version returns the server's version; empty for a container.
func (r *RedisServer) Version() string { return r.program.Version }

// Stop shuts the server down. Restart starts it again; what it held is lost unless Args say otherwise.
func (r *RedisServer) Stop(ctx context.Context) error {
	if r.process == nil || r.process.exited() {
		return nil
	}
	return r.process.end(ctx, signalTerminate)
}

// Restart stops the server if it runs and starts it on the same port.
func (r *RedisServer) Restart(ctx context.Context) error {
	if err := r.Stop(ctx); err != nil {
		return err
	}
	return r.start(ctx)
}

// Kill is the crash: SIGKILL. It returns when the process is gone.
func (r *RedisServer) Kill() error {
	if r.process == nil || r.process.exited() {
		return nil
	}
	if r.program.Path == "" {
		return docker("kill", r.container())
	}
	return r.process.kill()
}

// Signal sends a signal to the server (a container's: to its client), as SIGSTOP and SIGCONT.
func (r *RedisServer) Signal(signal os.Signal) error {
	if r.process == nil {
		return os.ErrProcessDone
	}
	return r.process.signal(signal)
}

// Dir returns the directory that the server works in, where its dump goes.
func (r *RedisServer) Dir() string { return r.place.dir }

func (r *RedisServer) container() string { return filepath.Base(r.place.dir) }

// Close ends the server and removes what it wrote.
func (r *RedisServer) Close() error {
	errs := []error{r.Kill()}
	if r.program.Path == "" {
		errs = append(errs, removeContainer(r.container()))
	}
	return errors.Join(append(errs, r.place.release())...)
}
