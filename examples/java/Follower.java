import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.security.MessageDigest;
import java.time.Duration;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Print each release of a run as it arrives, once the digest of its weights is verified.
 *
 * <pre>java -cp "$JARS/*" examples/java/Follower.java RUN_ID [BOOTSTRAP_SERVERS]</pre>
 */
public class Follower {
    static final int MAX_MANIFEST_BYTES = 4 << 20;

    public static void main(String[] arguments) throws Exception {
        System.setProperty("org.slf4j.simpleLogger.defaultLogLevel", "warn");
        String run = arguments[0];
        var checkpoints = new TopicPartition(run + ".checkpoints", 0);
        var weights = new TopicPartition(run + ".weights", 0);
        Map<String, Object> settings = Map.of(
                "bootstrap.servers", arguments.length > 1 ? arguments[1] : "127.0.0.1:9092",
                "isolation.level", "read_committed"); // otherwise it would also read records of aborted transactions
        var bytes = new ByteArrayDeserializer();
        var json = new ObjectMapper();
        // The newest chunk of each key. All releases use the same keys.
        var chunks = new HashMap<String, ConsumerRecord<byte[], byte[]>>();
        JsonNode newest = null;
        JsonNode printed = null;
        try (var consumer = new KafkaConsumer<byte[], byte[]>(settings, bytes, bytes)) {
            consumer.assign(List.of(checkpoints, weights));
            consumer.seekToBeginning(consumer.assignment());
            while (true) { // until Ctrl-C
                var records = consumer.poll(Duration.ofSeconds(1));
                for (var record : records.records(weights)) {
                    chunks.put(new String(record.key(), "UTF-8"), record);
                }
                for (var record : records.records(checkpoints)) {
                    JsonNode manifest = parsed(json, record);
                    if (manifest != null && manifest.path("run_id").asText().equals(run) && isLater(manifest, newest)) {
                        newest = manifest;
                    }
                }
                // A topic may show a transaction a moment before another one does, so the chunks may arrive later.
                if (newest != null && isLater(newest, printed) && print(newest.get("release"), chunks)) {
                    printed = newest;
                }
            }
        }
    }

    /** Returns a manifest, or null if the record is not a manifest with a release. */
    static JsonNode parsed(ObjectMapper json, ConsumerRecord<byte[], byte[]> record) {
        try {
            if (record.value() != null && record.value().length <= MAX_MANIFEST_BYTES) {
                JsonNode manifest = json.readTree(record.value());
                return manifest.path("release").isObject() ? manifest : null;
            }
        } catch (IOException error) {
            System.err.println("the record at offset " + record.offset() + " is not a manifest");
        }
        return null;
    }

    static boolean isLater(JsonNode a, JsonNode b) {
        if (b == null || a.path("epoch").asLong() != b.path("epoch").asLong()) {
            return b == null || a.path("epoch").asLong() > b.path("epoch").asLong();
        }
        return a.at("/release/sequence").asLong() > b.at("/release/sequence").asLong();
    }

    /** Joins and verifies the chunks of a release. Returns false while a chunk is missing. */
    static boolean print(JsonNode release, Map<String, ConsumerRecord<byte[], byte[]>> chunks) throws Exception {
        var values = new HashMap<Long, byte[]>();
        chunks.values().forEach(record -> values.put(record.offset(), record.value()));
        var weights = new ByteArrayOutputStream();
        for (JsonNode chunk : release.path("chunks")) {
            byte[] value = values.get(chunk.path("offset").asLong());
            if (value == null) {
                return false;
            }
            weights.write(value);
        }
        byte[] digest = MessageDigest.getInstance("SHA-256").digest(weights.toByteArray());
        String found;
        if (release.path("chunks").isEmpty()) {
            found = "its weights are only in the object store";
        } else if (release.at("/object/digest").asText().equals("sha256:" + HexFormat.of().formatHex(digest))) {
            found = weights.size() + " bytes, verified";
        } else {
            found = "refused: its weights have another digest than its manifest names";
        }
        JsonNode accuracy = release.at("/test/accuracy");
        System.out.printf("release %d: %d classes, test accuracy %s, %s%n", release.path("sequence").asLong(),
                release.path("labels").size(),
                accuracy.isNumber() ? String.format("%.1f%%", accuracy.asDouble() * 100) : "unknown", found);
        return true;
    }
}
