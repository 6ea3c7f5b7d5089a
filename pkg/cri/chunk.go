package cri

import "google.golang.org/protobuf/proto"

// chunkSize is about how much one message of a streamed list carries, in bytes: enough to be cheap, little enough that
// a reader which is slow keeps no more than this in memory.
const chunkSize = 256 << 10

// sendChunks is the Stream* twin of a list: each item once, in messages that are never empty; nothing for no items.
func sendChunks[T any, Item proto.Message](all []T, keep func(T) bool, translate func(T) Item, send func([]Item) error) error {
	var chunk []Item
	size := 0
	for _, one := range all {
		if !keep(one) {
			continue
		}
		item := translate(one)
		chunk = append(chunk, item)
		if size += proto.Size(item); size >= chunkSize {
			if err := send(chunk); err != nil {
				return err
			}
			chunk, size = nil, 0
		}
	}
	if len(chunk) == 0 {
		return nil
	}
	return send(chunk)
}

func all[T any](T) bool { return true }

func itself[T any](item T) T { return item }
