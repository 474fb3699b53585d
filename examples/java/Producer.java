import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Map;
import java.util.Random;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Send the images of a folder that has one folder for each class.
 *
 * <pre>java -cp "$JARS/*" examples/java/Producer.java TOPIC FOLDER [BOOTSTRAP_SERVERS]</pre>
 */
public class Producer {
    public static void main(String[] arguments) throws Exception {
        System.setProperty("org.slf4j.simpleLogger.defaultLogLevel", "warn");
        String topic = arguments[0];
        Path folder = Path.of(arguments[1]);
        String servers = arguments.length > 2 ? arguments[2] : "127.0.0.1:9092";
        var images = new ArrayList<Path>();
        try (var paths = Files.walk(folder, 2)) {
            paths.filter(Files::isRegularFile).filter(path -> folder.relativize(path).getNameCount() == 2)
                    .sorted().forEach(images::add);
        }
        Collections.shuffle(images, new Random(0)); // a model learns less well from one class after the other
        // The default settings wait for all replicas (acks=all), and a retry writes no record twice (idempotence).
        Map<String, Object> settings = Map.of("bootstrap.servers", servers);
        var bytes = new ByteArraySerializer();
        try (var producer = new KafkaProducer<byte[], byte[]>(settings, bytes, bytes)) {
            for (Path image : images) {
                var record = new ProducerRecord<byte[], byte[]>(topic, Files.readAllBytes(image));
                record.headers().add("label", image.getParent().getFileName().toString().getBytes("UTF-8"));
                record.headers().add("id", folder.relativize(image).toString().getBytes("UTF-8"));
                producer.send(record, (where, error) -> {
                    if (error != null) {
                        System.err.println(image + " was not sent: " + error.getMessage());
                        System.exit(1);
                    }
                });
            }
        }
        System.out.println("sent " + images.size() + " images to " + topic);
    }
}
