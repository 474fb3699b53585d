import java.util.Map;
import org.apache.kafka.common.errors.PolicyViolationException;
import org.apache.kafka.server.policy.CreateTopicPolicy;

/** The limits that managed Kafka sets to the settings of topics. */
public class ManagedPolicy implements CreateTopicPolicy {
    public void configure(Map<String, ?> configs) {}

    public void close() {}

    public void validate(RequestMetadata request) {
        check(request, "segment.bytes", 50 << 20, Long.MAX_VALUE);
        check(request, "max.message.bytes", 0, 8 << 20);
    }

    private void check(RequestMetadata request, String name, long least, long most) {
        String value = request.configs().get(name);
        if (value != null && (Long.parseLong(value) < least || Long.parseLong(value) > most))
            throw new PolicyViolationException(name + "=" + value + " is not within " + least + " and " + most);
    }
}
