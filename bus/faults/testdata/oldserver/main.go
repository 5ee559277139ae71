// SPDX-License-Identifier: Apache-2.0

// Command oldserver is a server of an earlier nats-server on the data directory
// of an embedded one, which it serves as that one would, until its input ends.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: oldserver DIRECTORY HOST:PORT")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "oldserver:", err)
		os.Exit(1)
	}
}

func run(dir, listen string) error {
	host, p, err := net.SplitHostPort(listen)
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(p)
	if err != nil {
		return err
	}
	opts, err := server.ProcessConfigFile(filepath.Join(dir, "accounts.conf"))
	if err != nil {
		return err
	}
	opts.ServerName, opts.Host, opts.Port = "petri", host, port
	opts.NoSigs, opts.NoLog, opts.MaxPayload = true, true, 2<<20+64<<10
	opts.JetStream, opts.StoreDir, opts.SyncAlways = true, dir, true
	opts.JetStreamMaxStore, opts.JetStreamMaxMemory = 1<<50, 256<<20
	s, err := server.NewServer(opts)
	if err != nil {
		return err
	}
	s.Start()
	if !s.ReadyForConnections(30 * time.Second) {
		return fmt.Errorf("not ready")
	}
	fmt.Println("ready", server.VERSION)
	_, _ = io.Copy(io.Discard, os.Stdin)
	s.Shutdown()
	s.WaitForShutdown()
	return nil
}
