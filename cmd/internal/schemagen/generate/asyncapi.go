// SPDX-License-Identifier: Apache-2.0

package generate

import (
	"fmt"
	"regexp"
	"slices"

	"github.com/petri-sandbox/petri/schemas"
)

// obj is a JSON object of the AsyncAPI document.
type obj = map[string]any

// asyncAPI makes the AsyncAPI 3 document of the bus from a client's side: it
// receives what the log holds, and sends what an analyzer hands in.
// https://www.asyncapi.com/docs/reference/specification/v3.0.0
func asyncAPI() ([]byte, error) {
	channels, operations, messages := obj{}, obj{}, obj{}
	for _, c := range schemas.Channels() {
		types, err := typesOf(c)
		if err != nil {
			return nil, err
		}
		parameters, err := parameters(c)
		if err != nil {
			return nil, err
		}
		about := c.About
		if c.Stream != "" {
			about += " Stream: " + c.Stream + "."
		}
		channels[c.Name] = obj{
			"address": c.Address, "description": about, "parameters": parameters, "messages": refs(types, messages),
		}
		op := obj{"action": c.Action, "channel": ref("channels", c.Name), "summary": c.About}
		if len(c.Reply) > 0 {
			reply := c.Name + "_reply"
			channels[reply] = obj{"address": nil, "description": "The answer, on the request's own reply subject.", "messages": refs(c.Reply, messages)}
			op["reply"] = obj{"channel": ref("channels", reply)}
		}
		operations[string(c.Action)+"_"+c.Name] = op
	}
	return encode(obj{
		"asyncapi": "3.0.0",
		"info": obj{
			"title": "Petri's bus", "version": "1.0.0", "license": obj{"name": "Apache-2.0"},
			"description": "What a client of Petri's NATS server reads and writes. Bodies are CloudEvents 1.0 in the structured JSON format. docs/write-an-analyzer.md shows it at work.",
		},
		"defaultContentType": "application/cloudevents+json",
		"channels":           channels,
		"operations":         operations,
		"components":         obj{"messages": messages},
	})
}

// typesOf lists the types that travel on a channel.
func typesOf(c schemas.Channel) ([]string, error) {
	types := c.Types
	for _, t := range schemas.Types() {
		if e := (schemas.Event{Type: t.Name}); c.Family != "" && t.Form == schemas.FormEvent && e.Family() == c.Family {
			types = append(types, t.Name)
		}
	}
	if len(types) == 0 {
		return nil, fmt.Errorf("channel %s: nothing travels on it", c.Name)
	}
	return types, nil
}

var parameter = regexp.MustCompile(`\{([a-z]+)\}`)

func parameters(c schemas.Channel) (obj, error) {
	known, out := schemas.ChannelParameters(), obj{}
	for _, m := range parameter.FindAllStringSubmatch(c.Address, -1) {
		about, ok := known[m[1]]
		if !ok {
			return nil, fmt.Errorf("channel %s: nothing says what {%s} is", c.Name, m[1])
		}
		out[m[1]] = obj{"description": about}
	}
	return out, nil
}

// refs returns a channel's references to messages, which it also makes.
func refs(types []string, messages obj) obj {
	out := obj{}
	for _, typ := range types {
		out[typ] = ref("components/messages", typ)
		if _, ok := messages[typ]; !ok {
			messages[typ] = message(typ)
		}
	}
	return out
}

func ref(where, name string) obj { return obj{"$ref": "#/" + where + "/" + name} }

// message is one message: an event in its envelope, or a document as it is.
func message(typ string) obj {
	list := schemas.Types()
	info := list[slices.IndexFunc(list, func(t schemas.TypeInfo) bool { return t.Name == typ })]
	m := obj{"name": typ, "payload": obj{"$ref": typ + ".json"}}
	switch info.Form {
	case schemas.FormDocument:
		m["contentType"] = "application/json"
	case schemas.FormEvent:
		m["payload"] = obj{"allOf": []any{
			obj{"$ref": schemas.EnvelopeSchema + ".json"},
			obj{"properties": obj{"data": obj{"$ref": typ + ".json"}}},
		}}
		if typ != schemas.CustomType { // whose events have names of their own
			m["payload"].(obj)["allOf"].([]any)[1].(obj)["properties"].(obj)["type"] = obj{"const": typ}
		}
	}
	return m
}
