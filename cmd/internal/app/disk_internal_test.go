// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"sync"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/sandboxd"
)

// RoomyStore is [roomyStore].
type RoomyStore = roomyStore

// NewRoomyStore returns a store on an invented disk and server.
func NewRoomyStore(s sandboxd.Store, disk func() (bus.Gauge, error), room func(context.Context) (bus.Room, error)) RoomyStore {
	return roomyStore{Store: s, disk: disk, room: room, mu: new(sync.Mutex), known: new(bus.Room)}
}

// SetMeasure gives a configuration an invented disk.
func (c *Config) SetMeasure(f func(dir string) (bus.Gauge, error)) { c.measure = f }
