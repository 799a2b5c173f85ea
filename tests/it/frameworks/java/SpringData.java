// Spring Data Redis: operations on hashes, transactions, listeners of messages and of streams.
import org.springframework.dao.DataAccessException;
import org.springframework.data.redis.connection.RedisStandaloneConfiguration;
import org.springframework.data.redis.connection.lettuce.LettuceConnectionFactory;
import org.springframework.data.redis.connection.stream.Consumer;
import org.springframework.data.redis.connection.stream.MapRecord;
import org.springframework.data.redis.connection.stream.ReadOffset;
import org.springframework.data.redis.connection.stream.StreamOffset;
import org.springframework.data.redis.connection.stream.StreamRecords;
import org.springframework.data.redis.core.BoundHashOperations;
import org.springframework.data.redis.core.RedisOperations;
import org.springframework.data.redis.core.ScanOptions;
import org.springframework.data.redis.core.SessionCallback;
import org.springframework.data.redis.core.StringRedisTemplate;
import org.springframework.data.redis.core.script.DefaultRedisScript;
import org.springframework.data.redis.listener.ChannelTopic;
import org.springframework.data.redis.listener.PatternTopic;
import org.springframework.data.redis.listener.RedisMessageListenerContainer;
import org.springframework.data.redis.stream.StreamMessageListenerContainer;

import java.net.URI;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentLinkedQueue;

class SpringData {
    static void run(URI first, URI second) throws Exception {
        LettuceConnectionFactory here = factory(first);
        LettuceConnectionFactory there = factory(second);
        StringRedisTemplate mine = new StringRedisTemplate(here);
        StringRedisTemplate theirs = new StringRedisTemplate(there);
        hashes(mine, theirs);
        values(mine, theirs);
        transactions(mine);
        messages(mine, there);
        streams(mine, here, there);
        here.destroy();
        there.destroy();
    }

    static LettuceConnectionFactory factory(URI url) {
        var node = new RedisStandaloneConfiguration(url.getHost(), url.getPort());
        node.setDatabase(Frameworks.database(url));
        LettuceConnectionFactory factory = new LettuceConnectionFactory(node);
        factory.afterPropertiesSet();
        factory.start();
        return factory;
    }

    private static void hashes(StringRedisTemplate mine, StringRedisTemplate theirs)
            throws Exception {
        BoundHashOperations<String, String, String> hash = mine.boundHashOps("spring:hash");
        hash.putAll(Map.of("a", "1", "b", "2"));
        Frameworks.check(hash.putIfAbsent("c", "3") && !hash.putIfAbsent("c", "4"), "putIfAbsent");
        Frameworks.same(11L, hash.increment("a", 10));
        Frameworks.same(2.5, hash.increment("b", 0.5));
        Frameworks.same(List.of("11", "3"), hash.multiGet(List.of("a", "c")));
        BoundHashOperations<String, String, String> other = theirs.boundHashOps("spring:hash");
        Map<String, String> all = Map.of("a", "11", "b", "2.5", "c", "3");
        Frameworks.eventually("the other node has it", () -> all.equals(other.entries()));
        Map<String, String> many = new java.util.HashMap<>();
        for (int n = 0; n < 1_000; n++) {
            many.put("field " + n, "value " + n);
        }
        mine.opsForHash().putAll("spring:many", many);
        Set<Object> seen = new HashSet<>();
        try (var cursor =
                mine.opsForHash()
                        .scan("spring:many", ScanOptions.scanOptions().count(50).build())) {
            cursor.forEachRemaining(entry -> seen.add(entry.getKey()));
        }
        Frameworks.same(many.keySet(), seen);
        hash.expire(Duration.ofSeconds(100));
        Frameworks.check(hash.getExpire() > 90, "the time to live");
        Frameworks.same(1L, hash.delete("c", "absent"));
    }

    private static void values(StringRedisTemplate mine, StringRedisTemplate theirs) {
        Frameworks.check(
                mine.opsForValue().setIfAbsent("spring:once", "1", Duration.ofMinutes(1)),
                "SET NX");
        Frameworks.check(
                !theirs.opsForValue().setIfAbsent("spring:once", "2", Duration.ofMinutes(1)),
                "SET NX");
        mine.opsForZSet().add("spring:zset", "a", 1);
        mine.opsForZSet().incrementScore("spring:zset", "a", 2);
        Frameworks.same(3.0, mine.opsForZSet().score("spring:zset", "a"));
        mine.opsForList().rightPushAll("spring:list", "a", "b");
        Frameworks.same("b", mine.opsForList().rightPopAndLeftPush("spring:list", "spring:list"));
        mine.opsForSet().add("spring:set", "a", "b");
        Frameworks.same(Set.of("a", "b"), mine.opsForSet().members("spring:set"));
        var script =
                new DefaultRedisScript<>(
                        "return redis.call('INCRBY', KEYS[1], ARGV[1])", Long.class);
        Frameworks.same(5L, mine.execute(script, List.of("spring:number"), "5"));
        Frameworks.same(11L, theirs.execute(script, List.of("spring:number"), "6"));
    }

    private static void transactions(StringRedisTemplate template) {
        List<Object> results =
                template.execute(
                        new SessionCallback<List<Object>>() {
                            @Override
                            @SuppressWarnings("unchecked")
                            public List<Object> execute(RedisOperations operations)
                                    throws DataAccessException {
                                operations.watch("spring:watched");
                                operations.multi();
                                operations.opsForValue().set("spring:watched", "1");
                                operations.opsForValue().increment("spring:watched");
                                return operations.exec();
                            }
                        });
        Frameworks.same(List.of(true, 2L), results);
        List<Object> piped =
                template.executePipelined(
                        new SessionCallback<Object>() {
                            @Override
                            @SuppressWarnings("unchecked")
                            public Object execute(RedisOperations operations)
                                    throws DataAccessException {
                                for (int n = 0; n < 20; n++) {
                                    operations.opsForValue().increment("spring:piped");
                                }
                                return null;
                            }
                        });
        Frameworks.same(20L, piped.get(19));
    }

    private static void messages(StringRedisTemplate mine, LettuceConnectionFactory there)
            throws Exception {
        ConcurrentLinkedQueue<String> heard = new ConcurrentLinkedQueue<>();
        RedisMessageListenerContainer container = new RedisMessageListenerContainer();
        container.setConnectionFactory(there);
        container.afterPropertiesSet();
        container.start();
        var topics = List.of(new ChannelTopic("spring:news"), new PatternTopic("spring:n?ws"));
        container.addMessageListener(
                (message, pattern) -> heard.add(new String(message.getBody())), topics);
        for (int n = 0; n < 10; n++) {
            mine.convertAndSend("spring:news", "message " + n);
        }
        Frameworks.eventually("all messages, twice", () -> heard.size() == 20);
        container.stop();
        container.destroy();
    }

    // A group with a consumer on each node: together they get every entry once.
    private static void streams(
            StringRedisTemplate mine, LettuceConnectionFactory here, LettuceConnectionFactory there)
            throws Exception {
        String stream = "spring:stream";
        mine.opsForStream().createGroup(stream, ReadOffset.from("0"), "group");
        ConcurrentLinkedQueue<String> received = new ConcurrentLinkedQueue<>();
        var options =
                StreamMessageListenerContainer.StreamMessageListenerContainerOptions.builder()
                        .pollTimeout(Duration.ofMillis(200))
                        .batchSize(5)
                        .build();
        List<StreamMessageListenerContainer<String, MapRecord<String, String, String>>> containers =
                new ArrayList<>();
        for (LettuceConnectionFactory factory : List.of(here, there)) {
            var container = StreamMessageListenerContainer.create(factory, options);
            var template = new StringRedisTemplate(factory);
            var consumer = Consumer.from("group", "consumer " + containers.size());
            container.receive(
                    consumer,
                    StreamOffset.create(stream, ReadOffset.lastConsumed()),
                    entry -> {
                        received.add(entry.getValue().get("n"));
                        template.opsForStream().acknowledge("group", entry);
                    });
            container.start();
            containers.add(container);
        }
        for (int n = 0; n < 50; n++) {
            mine.opsForStream()
                    .add(StreamRecords.mapBacked(Map.of("n", "" + n)).withStreamKey(stream));
        }
        Frameworks.eventually("all entries", () -> received.size() >= 50);
        Frameworks.same(50, new HashSet<>(received).size());
        Frameworks.eventually(
                "all are acknowledged",
                () -> mine.opsForStream().pending(stream, "group").getTotalPendingMessages() == 0);
        Frameworks.same(50, received.size());
        Frameworks.same(50L, mine.opsForStream().size(stream));
        containers.forEach(StreamMessageListenerContainer::stop);
    }
}
