// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// startRedis runs Debian's redis-server for a benchmark, on a socket in its
// directory, and returns how to connect.
func startRedis(b *testing.B, fsync string) func() *redis {
	b.Helper()
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		b.Fatal("redis-server, to be compared with, is not installed: make setup")
	}
	dir := b.TempDir()
	socket := filepath.Join(dir, "redis.sock")
	cmd := exec.CommandContext(b.Context(), bin, "--port", "0", "--unixsocket", socket, "--dir", dir, "--save", "", "--appendonly", "yes", "--appendfsync", fsync)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	connect := func() *redis {
		conn, err := net.Dial("unix", socket)
		for end := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(end); conn, err = net.Dial("unix", socket) {
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			b.Fatalf("redis-server does not come up: %v", err)
		}
		b.Cleanup(func() { conn.Close() })
		return &redis{conn: conn, r: bufio.NewReader(conn)}
	}
	if _, err := connect().do("PING"); err != nil {
		b.Fatal(err)
	}
	return connect
}

// redis is a connection to Redis, in as much of its protocol as is needed. It
// is for one goroutine.
type redis struct {
	conn net.Conn
	r    *bufio.Reader
	buf  []byte
}

// do sends a command and returns the last text of its answer.
func (c *redis) do(args ...string) (string, error) {
	c.buf = fmt.Appendf(c.buf[:0], "*%d\r\n", len(args))
	for _, a := range args {
		c.buf = fmt.Appendf(c.buf, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := c.conn.Write(c.buf); err != nil {
		return "", err
	}
	return c.answer()
}

func (c *redis) answer() (string, error) {
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	text := line[1 : len(line)-2]
	switch line[0] {
	case '-':
		return "", errors.New(text)
	case '$':
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return "", err
		}
		b := make([]byte, n+2)
		_, err = io.ReadFull(c.r, b)
		return string(b[:n]), err
	case '*':
		n, err := strconv.Atoi(text)
		for range n {
			if err == nil {
				text, err = c.answer()
			}
		}
		return text, err
	}
	return text, nil
}

// redisPipeline does what Karton does: a producer SETs a task and RPUSHes it,
// the one router BLPOPs it and RPUSHes it to the analyzer, who BLPOPs it and
// sends what it has found the same way to the reporter. Bytes, if any, are SET
// beside it. There is nothing like a receipt: who dies with a task has lost it.
func redisPipeline(b *testing.B, fsync string, l load) figures {
	connect := startRedis(b, fsync)
	const body = `{"uid":"%d","root_uid":"%d","headers":{"type":"%s","kind":"dropped"},"payload":{"sha256":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","size":4096},"status":"Declared","priority":"normal","last_update":1732600000.0,"origin":"bench"}`
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	work := func(n int, f func(c *redis) error) {
		for range n {
			c := connect()
			g.Go(func() error {
				for ctx.Err() == nil {
					if err := f(c); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
	work(1, func(c *redis) error { // the router
		id, err := c.do("BLPOP", "tasks", "1")
		if err != nil || id == "" || id == "-1" {
			return err
		}
		task, err := c.do("GET", "task:"+id)
		if err != nil {
			return err
		}
		queue := "analyzer"
		if len(task) > 0 && id[0] == 'f' {
			queue = "reporter"
		}
		_, err = c.do("RPUSH", queue, id)
		return err
	})
	work(workers, func(c *redis) error { // the analyzer
		id, err := c.do("BLPOP", "analyzer", "1")
		if err != nil || id == "" || id == "-1" {
			return err
		}
		if _, err := c.do("GET", "task:"+id); err != nil {
			return err
		}
		if l.artifact > 0 {
			if data, err := c.do("GET", "bytes:"+id); err != nil || len(data) != l.artifact {
				return fmt.Errorf("%d bytes: %w", len(data), err)
			}
		}
		if _, err := c.do("SET", "task:f"+id, fmt.Sprintf(body, 0, 0, "finding")); err != nil {
			return err
		}
		_, err = c.do("RPUSH", "tasks", "f"+id)
		return err
	})
	m := newMeter(l)
	work(1, func(c *redis) error { // the reporter
		id, err := c.do("BLPOP", "reporter", "1")
		if err != nil || id == "" || id == "-1" {
			return err
		}
		if _, err := c.do("GET", "task:"+id); err != nil {
			return err
		}
		n, err := strconv.Atoi(id[1:])
		m.done(n)
		return err
	})
	producers := make(chan *redis, workers)
	for range workers {
		producers <- connect()
	}
	f := m.produce(b, func(n int, data []byte) error {
		c := <-producers
		defer func() { producers <- c }()
		id := strconv.Itoa(n)
		if l.artifact > 0 {
			if _, err := c.do("SET", "bytes:"+id, string(data)); err != nil {
				return err
			}
		}
		if _, err := c.do("SET", "task:"+id, fmt.Sprintf(body, n, n, "artifact")); err != nil {
			return err
		}
		_, err := c.do("RPUSH", "tasks", id)
		return err
	})
	cancel()
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	return f
}
