import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URLDecoder;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import org.apache.pulsar.client.api.Consumer;
import org.apache.pulsar.client.api.DeadLetterPolicy;
import org.apache.pulsar.client.api.Message;
import org.apache.pulsar.client.api.MessageId;
import org.apache.pulsar.client.api.Producer;
import org.apache.pulsar.client.api.PulsarClient;
import org.apache.pulsar.client.api.Schema;
import org.apache.pulsar.client.api.SubscriptionInitialPosition;
import org.apache.pulsar.client.api.SubscriptionType;
import org.apache.pulsar.client.api.TypedMessageBuilder;
import org.apache.pulsar.client.api.schema.SchemaDefinition;

/**
 * A Java service that knows nothing but Pulsar's own client, and does what standard input says until that ends.
 *
 * A line is a verb and its words, the answer a line that begins with "ok" or "error"; words are URL-encoded.
 */
public final class Interop {
    /** The payload of an event as a Java program has it. */
    public static class Order {
        public long number;
        public String customer;

        /** The topic's own: Python's int is a long, and nothing is null that is not so there. */
        static final Schema<Order> SCHEMA = Schema.JSON(
                SchemaDefinition.<Order>builder().withPojo(Order.class).withAlwaysAllowNull(false).build());
    }

    private final PulsarClient client;
    private final Map<String, Consumer<byte[]>> consumers = new HashMap<>();
    /** What each consumer received last. */
    private final Map<String, Message<byte[]>> inHand = new HashMap<>();

    private Interop(PulsarClient client) {
        this.client = client;
    }

    public static void main(String[] arguments) throws Exception {
        try (PulsarClient client = PulsarClient.builder().serviceUrl(arguments[0]).build()) {
            Interop interop = new Interop(client);
            BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                System.out.println(interop.answer(line));
            }
        }
    }

    private String answer(String line) {
        List<String> words = Arrays.stream(line.split(" ", -1))
                .map(word -> URLDecoder.decode(word, StandardCharsets.UTF_8))
                .collect(Collectors.toList());
        List<String> answer = new ArrayList<>();
        try {
            answer.add("ok");
            answer.addAll(obey(words.get(0), words.subList(1, words.size())));
        } catch (Exception error) {
            answer = List.of("error", error.toString());
        }
        return answer.stream()
                .map(word -> URLEncoder.encode(word, StandardCharsets.UTF_8))
                .collect(Collectors.joining(" "));
    }

    private List<String> obey(String verb, List<String> words) throws Exception {
        switch (verb) {
            case "publish":
                return publish(words.get(0), words.get(1), words.get(2), words.subList(3, words.size()));
            case "publish-orders":
                return publishOrders(words.get(0), words.subList(1, words.size()));
            case "read-orders":
                return readOrders(words.get(0), words.get(1), Integer.parseInt(words.get(2)));
            case "subscribe":
                subscribe(words.get(0), words.get(1), words.get(2), Integer.parseInt(words.get(3)));
                return List.of();
            case "receive":
                return receive(words.get(0));
            case "acknowledge":
                consumers.get(words.get(0)).acknowledge(inHand.get(words.get(0)));
                return List.of();
            case "nack":
                consumers.get(words.get(0)).negativeAcknowledge(inHand.get(words.get(0)));
                return List.of();
            case "later":
                long delay = Long.parseLong(words.get(1));
                consumers.get(words.get(0)).reconsumeLater(inHand.get(words.get(0)), delay, TimeUnit.MILLISECONDS);
                return List.of();
            case "close":
                consumers.remove(words.get(0)).close();
                return List.of();
            default:
                throw new IllegalArgumentException(verb);
        }
    }

    /** Sends the bytes of a text; the headers are pairs of words, and a pt-eta among them is the broker's business too. */
    private List<String> publish(String topic, String value, String key, List<String> headers) throws Exception {
        try (Producer<byte[]> producer = client.newProducer().topic(topic).create()) {
            TypedMessageBuilder<byte[]> message = producer.newMessage().value(value.getBytes(StandardCharsets.UTF_8));
            if (!key.isEmpty()) {
                message.key(key);
            }
            for (int i = 0; i < headers.size(); i += 2) {
                message.property(headers.get(i), headers.get(i + 1));
                if (headers.get(i).equals("pt-eta")) {
                    message.deliverAt(Long.parseLong(headers.get(i + 1)));
                }
            }
            return List.of(message.send().toString());
        }
    }

    /** Sends an order for each customer, numbered from 1, as Java does it by default: with a schema, in batches. */
    private List<String> publishOrders(String topic, List<String> customers) throws Exception {
        List<CompletableFuture<MessageId>> sent = new ArrayList<>();
        try (Producer<Order> producer = client.newProducer(Order.SCHEMA)
                .topic(topic)
                .batchingMaxPublishDelay(1, TimeUnit.SECONDS)
                .create()) {
            for (String customer : customers) {
                Order order = new Order();
                order.number = sent.size() + 1;
                order.customer = customer;
                sent.add(producer.newMessage().key(customer).value(order).sendAsync());
            }
            producer.flush();
        }
        return sent.stream().map(id -> id.join().toString()).collect(Collectors.toList());
    }

    /** The customers of so many orders, each acknowledged, by a consumer that knows their type. */
    private List<String> readOrders(String topic, String subscription, int count) throws Exception {
        List<String> customers = new ArrayList<>();
        try (Consumer<Order> consumer = client.newConsumer(Order.SCHEMA)
                .topic(topic)
                .subscriptionName(subscription)
                .subscriptionType(SubscriptionType.Shared)
                .subscriptionInitialPosition(SubscriptionInitialPosition.Earliest)
                .subscribe()) {
            while (customers.size() < count) {
                Message<Order> message = consumer.receive(30, TimeUnit.SECONDS);
                customers.add(message.getValue().customer);
                consumer.acknowledge(message);
            }
        }
        return customers;
    }

    /** A consumer called `name`; with `retries` of 0 or more it has the retry and dead-letter topics of its subscription. */
    private void subscribe(String name, String topic, String subscription, int retries) throws Exception {
        var builder = client.newConsumer()
                .topic(topic)
                .subscriptionName(subscription)
                .subscriptionType(SubscriptionType.Shared)
                .subscriptionInitialPosition(SubscriptionInitialPosition.Earliest)
                .negativeAckRedeliveryDelay(100, TimeUnit.MILLISECONDS);
        if (retries >= 0) {
            builder.enableRetry(true)
                    .deadLetterPolicy(DeadLetterPolicy.builder()
                            .maxRedeliverCount(retries)
                            .initialSubscriptionName("dead-letters")
                            .build());
        }
        consumers.put(name, builder.subscribe());
    }

    /** Topic, key and value of the next message, then its headers as pairs; nothing if none comes. */
    private List<String> receive(String name) throws Exception {
        Message<byte[]> message = consumers.get(name).receive(30, TimeUnit.SECONDS);
        if (message == null) {
            return List.of();
        }
        inHand.put(name, message);
        List<String> answer = new ArrayList<>();
        answer.add(message.getTopicName());
        answer.add(message.hasKey() ? message.getKey() : "");
        answer.add(new String(message.getData(), StandardCharsets.UTF_8));
        message.getProperties().forEach((header, value) -> answer.addAll(List.of(header, value)));
        return answer;
    }
}
