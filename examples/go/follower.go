// Print each release of a run as it arrives, once the digest of its weights is verified.
//
//	cd examples/go && go run . RUN_ID [BOOTSTRAP_SERVERS]
package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/twmb/franz-go/pkg/kgo"
)

const maxManifestBytes = 4 << 20

// Manifest has the fields that this program needs. The JSON Schema of the manifest lists all fields.
type Manifest struct {
	RunID   string `json:"run_id"`
	Epoch   int64  `json:"epoch"`
	Release *struct {
		Sequence int64 `json:"sequence"`
		Object   struct {
			Digest string `json:"digest"`
		} `json:"object"`
		Chunks []struct {
			Offset int64 `json:"offset"`
		} `json:"chunks"`
		Labels []any `json:"labels"`
		Test   struct {
			Accuracy *float64 `json:"accuracy"`
		} `json:"test"`
	} `json:"release"`
}

func main() {
	if len(os.Args) < 2 {
		log.Fatal("usage: go run . RUN_ID [BOOTSTRAP_SERVERS]")
	}
	run, servers := os.Args[1], "127.0.0.1:9092"
	if len(os.Args) > 2 {
		servers = os.Args[2]
	}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(servers),
		kgo.ConsumeTopics(run+".checkpoints", run+".weights"),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), // otherwise it would also read records of aborted transactions
	)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	stopped, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	chunks := map[string]*kgo.Record{} // the newest chunk of each key; all releases use the same keys
	var newest, printed Manifest
	for {
		fetches := client.PollFetches(stopped)
		if stopped.Err() != nil {
			return
		}
		fetches.EachError(func(topic string, _ int32, err error) { log.Printf("%s: %v", topic, err) })
		fetches.EachRecord(func(record *kgo.Record) {
			var manifest Manifest
			if record.Topic == run+".weights" {
				chunks[string(record.Key)] = record
			} else if len(record.Value) > maxManifestBytes || json.Unmarshal(record.Value, &manifest) != nil {
				log.Printf("the record at offset %d is not a manifest", record.Offset)
			} else if manifest.RunID == run && isLater(manifest, newest) {
				newest = manifest
			}
		})
		// A topic may show a transaction a moment before another one does, so the chunks may arrive later.
		if isLater(newest, printed) && print(newest, chunks) {
			printed = newest
		}
	}
}

// isLater returns whether a manifest has a release that is later than another manifest's.
func isLater(a, b Manifest) bool {
	if a.Release == nil || b.Release == nil {
		return a.Release != nil
	}
	return a.Epoch > b.Epoch || a.Epoch == b.Epoch && a.Release.Sequence > b.Release.Sequence
}

// print joins and verifies the chunks of a release. It returns false while a chunk is missing.
func print(manifest Manifest, chunks map[string]*kgo.Record) bool {
	release := manifest.Release
	values := map[int64][]byte{}
	for _, record := range chunks {
		values[record.Offset] = record.Value
	}
	var weights []byte
	for _, chunk := range release.Chunks {
		value, there := values[chunk.Offset]
		if !there {
			return false
		}
		weights = append(weights, value...)
	}
	accuracy := "unknown"
	if release.Test.Accuracy != nil {
		accuracy = fmt.Sprintf("%.1f%%", *release.Test.Accuracy*100)
	}
	fmt.Printf("release %d: %d classes, test accuracy %s, ", release.Sequence, len(release.Labels), accuracy)
	if len(release.Chunks) == 0 {
		fmt.Println("its weights are only in the object store")
	} else if fmt.Sprintf("sha256:%x", sha256.Sum256(weights)) == release.Object.Digest {
		fmt.Printf("%d bytes, verified\n", len(weights))
	} else {
		fmt.Println("refused: its weights have another digest than its manifest names")
	}
	return true
}
