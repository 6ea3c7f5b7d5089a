package config

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// describe puts file, line and key before what the decoder says.
func describe(path string, err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		first := unknown.Errors[0]
		line, _ := first.Position()
		key := strings.Join(first.Key(), ".")
		return fmt.Errorf("%s:%d: unknown key %s%s", path, line, key, suggestion(key))
	}
	var wrong *toml.DecodeError
	if errors.As(err, &wrong) {
		line, _ := wrong.Position()
		text := strings.TrimPrefix(wrong.Error(), "toml: ")
		if key := strings.Join(wrong.Key(), "."); key != "" {
			text = key + ": " + text
		}
		return fmt.Errorf("%s:%d: %s", path, line, text)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// suggestion is the known key that is nearest to one that is not, as a question.
func suggestion(unknown string) string {
	nearest, least := "", len(unknown)/2+1
	for _, k := range keys() {
		d := distance(unknown, k)
		if name(unknown) == name(k) {
			d = min(d, 1) // in the wrong table: the easiest mistake
		}
		if d < least {
			nearest, least = k, d
		}
	}
	if nearest == "" {
		return "; `criserver config` prints all keys"
	}
	return fmt.Sprintf("; do you mean %s?", nearest)
}

// name is a key without its tables.
func name(key string) string { return key[strings.LastIndexByte(key, '.')+1:] }

// keys are all keys and tables that there are, with the names of their tables.
func keys() []string {
	var walk func(prefix string, t reflect.Type) []string
	walk = func(prefix string, t reflect.Type) []string {
		var list []string
		for f := range t.Fields() {
			key := prefix + f.Tag.Get("toml")
			list = append(list, key)
			if f.Type.Kind() == reflect.Struct {
				list = append(list, walk(key+".", f.Type)...)
			}
		}
		return list
	}
	return walk("", reflect.TypeFor[Config]())
}

// distance is Levenshtein's: how many letters must be put in, left out or changed.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := corner
			if a[i] != b[j] {
				change++
			}
			corner = row[j+1]
			row[j+1] = min(change, row[j]+1, corner+1)
		}
	}
	return row[len(b)]
}

// lineOf finds the line of a key, or of the table that holds it; 0: the document has neither.
func lineOf(text []byte, key string) int {
	var p unstable.Parser
	p.Reset(text)
	var table []string
	line, best := 0, 0
	for p.NextExpression() {
		e := p.Expression()
		name, at := table, 0
		if e.Kind != unstable.KeyValue {
			name = nil
		}
		for it := e.Key(); it.Next(); {
			part := it.Node()
			name = append(slices.Clip(name), string(part.Data))
			if at == 0 {
				at = 1 + bytes.Count(text[:part.Raw.Offset], []byte("\n"))
			}
		}
		if e.Kind != unstable.KeyValue {
			table = name
		}
		dotted := strings.Join(name, ".")
		if (key == dotted || strings.HasPrefix(key, dotted+".")) && len(dotted) > best {
			line, best = at, len(dotted)
		}
	}
	return line
}

// Changed names the keys in which two configurations differ, sorted.
func Changed(a, b *Config) []string {
	var walk func(prefix string, x, y reflect.Value) []string
	walk = func(prefix string, x, y reflect.Value) []string {
		var list []string
		for f := range x.Type().Fields() {
			key, p, q := prefix+f.Tag.Get("toml"), x.FieldByIndex(f.Index), y.FieldByIndex(f.Index)
			if f.Type.Kind() == reflect.Struct {
				list = append(list, walk(key+".", p, q)...)
			} else if !reflect.DeepEqual(p.Interface(), q.Interface()) {
				list = append(list, key)
			}
		}
		return list
	}
	list := walk("", reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem())
	slices.Sort(list)
	return list
}
