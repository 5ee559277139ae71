// SPDX-License-Identifier: Apache-2.0

package generate

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"github.com/invopop/jsonschema"

	"github.com/petri-sandbox/petri/schemas"
)

// schema makes the schema of one entry of the registry. Objects are open: a
// newer Petri may have added a field.
// Which of the limits have had a use is noted.
func schema(src *source, t schemas.TypeInfo, used map[string]bool) (*jsonschema.Schema, error) {
	typ := reflect.TypeOf(t.Value)
	r := jsonschema.Reflector{
		Anonymous: true, ExpandedStruct: true, AllowAdditionalProperties: true,
		Mapper: src.mapped,
		LookupComment: func(t reflect.Type, field string) string {
			if field != "" {
				field = "." + field
			}
			return src.comments[t.Name()+field]
		},
	}
	s := r.ReflectFromType(typ)
	ref := refiner{defs: s.Definitions, seen: map[reflect.Type]bool{}, used: used}
	ref.object(typ, s)
	if ref.err != nil {
		return nil, ref.err
	}
	s.ID = jsonschema.ID(schemas.SchemaURI(t.Name))
	s.Title = t.Name
	if t.About != "" {
		s.Description = t.About
	}
	if p, ok := s.Properties.Get("schema"); ok && t.Form == schemas.FormDocument {
		p.Const = t.Name
	}
	if b, ok := t.Value.(schemas.Behavior); ok {
		narrow(s, b)
	}
	return s, nil
}

// narrow makes the schema of all behaviour that of one action.
func narrow(s *jsonschema.Schema, b schemas.Behavior) {
	for field, word := range map[string]string{"category": b.Category, "action": b.Action} {
		p, _ := s.Properties.Get(field)
		p.Const = word
	}
	object, _ := s.Properties.Get(b.Category)
	keep := strings.TrimPrefix(object.Ref, "#/$defs/")
	for name := range s.Definitions {
		if strings.HasSuffix(name, "Behavior") && name != keep {
			delete(s.Definitions, name)
		}
	}
	for _, action := range schemas.BehaviorActions {
		if category, _, _ := strings.Cut(action, "."); category != b.Category {
			s.Properties.Delete(category)
		}
	}
}

// mapped is the schema of types that have a text of their own in JSON, and of
// words. A new one each time: its description is of the field that has it.
func (src *source) mapped(t reflect.Type) *jsonschema.Schema {
	switch t {
	case reflect.TypeFor[schemas.Digest]():
		return &jsonschema.Schema{Type: "string", Pattern: patternDigest}
	case reflect.TypeFor[schemas.Duration]():
		return &jsonschema.Schema{Type: "string", Pattern: patternDuration}
	case reflect.TypeFor[schemas.Kind]():
		return &jsonschema.Schema{Type: "string", Pattern: patternName}
	case reflect.TypeFor[schemas.Source]():
		return &jsonschema.Schema{Type: "string", Pattern: patternName}
	case reflect.TypeFor[json.RawMessage]():
		return &jsonschema.Schema{}
	case reflect.TypeFor[[]byte]():
		return &jsonschema.Schema{Type: "string", ContentEncoding: "base64", Pattern: patternBase64}
	case reflect.TypeFor[schemas.Origin](), reflect.TypeFor[schemas.Severity](), reflect.TypeFor[schemas.Outcome](),
		reflect.TypeFor[schemas.Verdict](), reflect.TypeFor[schemas.Scope]():
		s := &jsonschema.Schema{Type: "string"}
		for _, w := range src.words[t.Name()] {
			s.Enum = append(s.Enum, w)
		}
		return s
	}
	return nil
}

// refiner adds to a schema what the library leaves out.
type refiner struct {
	defs jsonschema.Definitions
	seen map[reflect.Type]bool
	used map[string]bool // of limits
	err  error
}

// object refines the schema of a struct, and those of the structs in it.
func (r *refiner) object(t reflect.Type, s *jsonschema.Schema) {
	if r.seen[t] {
		return
	}
	r.seen[t] = true
	for _, f := range reflect.VisibleFields(t) {
		tag, ok := f.Tag.Lookup("json")
		name, opts, _ := strings.Cut(tag, ",")
		switch {
		case f.Anonymous && !ok, name == "-":
			continue
		case !ok || name == "":
			r.err = fmt.Errorf("field %s of %s has no name in JSON", f.Name, t)
			continue
		}
		p, ok := s.Properties.Get(name)
		if !ok {
			r.err = fmt.Errorf("property %s of %s is missing", name, t)
			continue
		}
		r.value(f.Type, p)
		owner := t
		if len(f.Index) > 1 {
			owner = t.FieldByIndex(f.Index[:len(f.Index)-1]).Type
		}
		if key := owner.Name() + "." + name; limits[key] != nil {
			limits[key](p)
			r.used[key] = true
		}
		if f.Type.Kind() == reflect.Pointer && !strings.Contains(opts, "omitempty") {
			about := p.Description
			p.Description = ""
			s.Properties.Set(name, &jsonschema.Schema{AnyOf: []*jsonschema.Schema{p, {Type: "null"}}, Description: about})
		}
	}
}

// value refines the schema of a field or an element.
func (r *refiner) value(t reflect.Type, s *jsonschema.Schema) {
	switch t.Kind() {
	case reflect.Pointer:
		r.value(t.Elem(), s)
	case reflect.Slice, reflect.Array:
		if s.Items != nil {
			r.value(t.Elem(), s.Items)
		}
	case reflect.Map:
		r.value(t.Elem(), s.AdditionalProperties)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		s.Minimum = "0"
	case reflect.Struct:
		if def := r.defs[strings.TrimPrefix(s.Ref, "#/$defs/")]; def != nil {
			r.object(t, def)
		}
	}
}
