// Writes a hash to the topic of a Highwater database, and shows a hash that is there.
//
//     java -cp 'jars/*' Hashes.java BOOTSTRAP TOPIC write KEY SECONDS
//     java -cp 'jars/*' Hashes.java BOOTSTRAP TOPIC show KEY
//
// The jars are org.apache.kafka:kafka-clients and org.msgpack:msgpack-core with what they need.
// docs/topic-format.md describes the records. hashes.py also reads split hashes.

import java.io.IOException;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.msgpack.core.MessageBufferPacker;
import org.msgpack.core.MessagePack;
import org.msgpack.core.MessageUnpacker;
import org.msgpack.value.ArrayValue;
import org.msgpack.value.Value;

import static java.nio.charset.StandardCharsets.UTF_8;

public class Hashes {
    static final byte[] FLUSH = "\0highwater:flush".getBytes(UTF_8);

    public static void main(String[] args) throws Exception {
        if (args.length == 5 && args[2].equals("write")) {
            write(args[0], args[1], args[3].getBytes(UTF_8), Long.parseLong(args[4]));
        } else if (args.length == 4 && args[2].equals("show")) {
            show(args[0], args[1], args[3].getBytes(UTF_8));
        } else {
            fail("arguments: BOOTSTRAP TOPIC write KEY SECONDS, or BOOTSTRAP TOPIC show KEY");
        }
    }

    /** Replaces the hash. Its field `token` expires after so many seconds. */
    static void write(String bootstrap, String topic, byte[] key, long seconds) throws Exception {
        MessageBufferPacker packer = MessagePack.newDefaultBufferPacker();
        packer.packMapHeader(4);
        packer.packString("name").packString("Grace");
        packer.packString("visits").packInt(7);
        packer.packString("raw").packBinaryHeader(1).writePayload(new byte[] {(byte) 0xff});
        packer.packString("token").packArrayHeader(2);
        packer.packString("xyz").packLong(System.currentTimeMillis() + seconds * 1000);

        ProducerRecord<byte[], byte[]> record = new ProducerRecord<>(topic, key, packer.toByteArray());
        record.headers().add("redis-type", "hash".getBytes(UTF_8));
        Map<String, Object> config = Map.of("bootstrap.servers", bootstrap);
        try (var producer = new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer())) {
            // `get` waits until Kafka has the record, and throws if Kafka refused it.
            producer.send(record).get();
        }
    }

    /** Prints the fields that have not expired, in the order of their names. */
    static void show(String bootstrap, String topic, byte[] key) throws IOException {
        ConsumerRecord<byte[], byte[]> newest = newest(bootstrap, topic, key);
        if (newest == null || newest.value() == null || isExpired(newest)) {
            fail("no such hash");
        }
        if (!"hash".equals(header(newest, "redis-type"))) {
            fail("the key holds no hash");
        }
        if (header(newest, "redis-split") != null) {
            fail("the hash is split: its elements are records of their own");
        }
        Map<String, String> fields = unpack(newest.value());
        if (fields.isEmpty()) {
            fail("no such hash");
        }
        fields.forEach((field, value) -> System.out.println(field + " = " + value));
    }

    /** The newest record of a key, or null. */
    static ConsumerRecord<byte[], byte[]> newest(String bootstrap, String topic, byte[] key) {
        // There is no group: the partitions are assigned, and no offset is committed.
        Map<String, Object> config = Map.of(
                "bootstrap.servers", bootstrap,
                "isolation.level", "read_committed",
                "enable.auto.commit", false);
        ConsumerRecord<byte[], byte[]> newest = null;
        try (var consumer = new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            List<TopicPartition> partitions = consumer.partitionsFor(topic).stream()
                    .map(partition -> new TopicPartition(topic, partition.partition()))
                    .toList();
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
            while (partitions.stream().anyMatch(each -> consumer.position(each) < ends.get(each))) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
                    if (Arrays.equals(record.key(), key)) {
                        newest = record;
                    } else if (isFlush(record) && newest != null && newest.partition() == record.partition()) {
                        newest = null;
                    }
                }
            }
        }
        return newest;
    }

    static boolean isFlush(ConsumerRecord<byte[], byte[]> record) {
        return Arrays.equals(record.key(), FLUSH) && "flush".equals(header(record, "redis-control"));
    }

    static boolean isExpired(ConsumerRecord<byte[], byte[]> record) {
        String until = header(record, "redis-expire-at");
        return until != null && Long.parseLong(until) <= System.currentTimeMillis();
    }

    /** The value of a header, or null. If it occurs twice, the last one counts. */
    static String header(ConsumerRecord<byte[], byte[]> record, String name) {
        Header header = record.headers().lastHeader(name);
        return header == null ? null : new String(header.value(), UTF_8);
    }

    /** The fields of a packed hash that have not expired. For text: other bytes are replaced. */
    static Map<String, String> unpack(byte[] value) throws IOException {
        Map<String, String> fields = new TreeMap<>();
        MessageUnpacker unpacker = MessagePack.newDefaultUnpacker(value);
        for (int left = unpacker.unpackMapHeader(); left > 0; left--) {
            String field = text(unpacker.unpackValue());
            Value item = unpacker.unpackValue();
            if (item.isArrayValue()) {
                // The value and the time when the field expires.
                ArrayValue pair = item.asArrayValue();
                item = pair.get(0);
                if (pair.get(1).asIntegerValue().toLong() <= System.currentTimeMillis()) {
                    fields.remove(field);
                    continue;
                }
            }
            fields.put(field, text(item));
        }
        return fields;
    }

    /** A field or value. Producers may write integers, which stand for their decimal digits. */
    static String text(Value item) {
        if (item.isIntegerValue()) {
            return item.asIntegerValue().toString();
        }
        return new String(item.asRawValue().asByteArray(), UTF_8);
    }

    static void fail(String message) {
        System.err.println(message);
        System.exit(1);
    }
}
