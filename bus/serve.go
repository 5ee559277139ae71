// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Serve runs the NATS server of a configuration file until ctx is done, in the
// file's directory: paths in it are relative to that. ready is called when the
// server takes connections; on a cluster it may not yet have found the others.
func Serve(ctx context.Context, config string, log *slog.Logger, ready func()) error {
	if err := os.Chdir(filepath.Dir(config)); err != nil {
		return fmt.Errorf("open the configuration: %w", err)
	}
	opts, err := server.ProcessConfigFile(filepath.Base(config))
	if err != nil {
		return fmt.Errorf("read the configuration %s: %w", config, err)
	}
	opts.NoSigs = true
	if opts.JetStream {
		if err := os.MkdirAll(opts.StoreDir, 0o700); err != nil {
			return fmt.Errorf("make the server's directory: %w", err)
		}
		lock, err := LockFile(opts.StoreDir, "lock")
		if err != nil {
			return err
		}
		defer lock.Close()
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		return fmt.Errorf("set up the NATS server: %w", err)
	}
	failed := make(chan error, 1)
	ns.SetLoggerV2(serverLog{log, failed}, false, false, false)
	ns.Start()
	defer ns.WaitForShutdown()
	defer ns.Shutdown()
	if !ns.ReadyForConnections(30 * time.Second) {
		return errors.New("the NATS server did not start: see its log, and whether its address is free")
	}
	ready()
	select {
	case err := <-failed: // it takes no more messages until it is started anew
		return fmt.Errorf("the log cannot be written: %w", err)
	case <-ctx.Done():
		return nil
	}
}
