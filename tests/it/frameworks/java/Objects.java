// Redisson: maps, topics, queues and limiters that clients of two nodes share.
import org.redisson.api.RBatch;
import org.redisson.api.RBlockingQueue;
import org.redisson.api.RBloomFilter;
import org.redisson.api.RDelayedQueue;
import org.redisson.api.RMap;
import org.redisson.api.RMapCache;
import org.redisson.api.RRateLimiter;
import org.redisson.api.RScoredSortedSet;
import org.redisson.api.RTopic;
import org.redisson.api.RTransaction;
import org.redisson.api.RateType;
import org.redisson.api.RedissonClient;
import org.redisson.api.TransactionOptions;
import org.redisson.client.codec.Codec;
import org.redisson.client.codec.IntegerCodec;
import org.redisson.client.codec.StringCodec;
import org.redisson.codec.CompositeCodec;

import java.net.URI;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.ConcurrentSkipListSet;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

class Objects {
    private static final Codec NUMBERS =
            new CompositeCodec(StringCodec.INSTANCE, IntegerCodec.INSTANCE);

    static void run(URI first, URI second) throws Exception {
        RedissonClient[] both = {Locks.client(first), Locks.client(second)};
        maps(both);
        expiringMap(both);
        topics(both);
        queues(both);
        limiter(both);
        batchAndTransaction(both);
        others(both);
        for (RedissonClient one : both) {
            one.shutdown();
        }
    }

    private static void maps(RedissonClient[] both) throws Exception {
        RMap<String, Integer> mine = both[0].getMap("map", NUMBERS);
        RMap<String, Integer> theirs = both[1].getMap("map", NUMBERS);
        Frameworks.check(mine.put("a", 1) == null, "a new map has an entry");
        Frameworks.same(1, theirs.put("a", 2));
        Frameworks.same(2, mine.putIfAbsent("a", 3));
        Frameworks.check(theirs.replace("a", 2, 4), "the map has another value");
        Frameworks.same(9, mine.addAndGet("a", 5));
        Frameworks.check(mine.fastPut("b", 1) && !theirs.fastPut("b", 2), "fastPut");
        List<Callable<Void>> tasks = new ArrayList<>();
        for (int t = 0; t < 2; t++) {
            RMap<String, Integer> map = both[t % 2].getMap("map", NUMBERS);
            tasks.add(
                    () -> {
                        for (int n = 0; n < 10; n++) {
                            map.addAndGet("sum", 1);
                        }
                        return null;
                    });
        }
        Locks.together(tasks);
        Frameworks.same(20, mine.addAndGet("sum", 0));
        Frameworks.same(7, theirs.compute("c", (key, old) -> old == null ? 7 : 0));
        Frameworks.eventually(
                "both have the map", () -> mine.readAllMap().equals(theirs.readAllMap()));
        Frameworks.same(Set.of("a", "b", "c", "sum"), mine.readAllKeySet());
        Frameworks.same(4, mine.keySet("*").size());
        Frameworks.same(2L, mine.fastRemove("b", "c", "absent"));
    }

    // Entries with times of their own: scripts over five keys and messages about what is gone.
    private static void expiringMap(RedissonClient[] both) throws Exception {
        RMapCache<String, String> mine = both[0].getMapCache("cache");
        RMapCache<String, String> theirs = both[1].getMapCache("cache");
        mine.put("short", "1", 300, TimeUnit.MILLISECONDS);
        mine.put("long", "2", 1, TimeUnit.HOURS, 30, TimeUnit.MINUTES);
        Frameworks.eventually("the entry is there", () -> "2".equals(theirs.get("long")));
        Frameworks.eventually("the entry goes", () -> theirs.get("short") == null);
        long left = theirs.remainTimeToLive("long");
        Frameworks.check(left > 1_700_000 && left <= 3_600_000, "an entry lives " + left + " ms");
    }

    private static void topics(RedissonClient[] both) throws Exception {
        RTopic mine = both[0].getTopic("topic");
        RTopic theirs = both[1].getTopic("topic");
        ConcurrentLinkedQueue<String> heard = new ConcurrentLinkedQueue<>();
        int listener = theirs.addListener(String.class, (channel, text) -> heard.add(text));
        ConcurrentLinkedQueue<String> byPattern = new ConcurrentLinkedQueue<>();
        both[1].getPatternTopic("top*")
                .addListener(String.class, (pattern, channel, text) -> byPattern.add(text));
        List<String> sent = new ArrayList<>();
        for (int n = 0; n < 20; n++) {
            sent.add("message " + n);
            mine.publish("message " + n);
        }
        Frameworks.eventually("all messages", () -> heard.size() >= 20 && byPattern.size() >= 20);
        Frameworks.same(sent, new ArrayList<>(heard));
        Frameworks.same(sent, new ArrayList<>(byPattern));
        theirs.removeListener(listener);
        both[1].getPatternTopic("top*").removeAllListeners();
    }

    private static void queues(RedissonClient[] both) throws Exception {
        RBlockingQueue<Integer> mine = both[0].getBlockingQueue("queue");
        ConcurrentSkipListSet<Integer> taken = new ConcurrentSkipListSet<>();
        AtomicInteger takes = new AtomicInteger();
        List<Callable<Void>> tasks = new ArrayList<>();
        for (int t = 0; t < 4; t++) {
            RBlockingQueue<Integer> queue = both[t % 2].getBlockingQueue("queue");
            tasks.add(
                    () -> {
                        for (Integer item; (item = queue.poll(20, TimeUnit.SECONDS)) >= 0; ) {
                            taken.add(item);
                            takes.incrementAndGet();
                        }
                        return null;
                    });
        }
        tasks.add(
                () -> {
                    for (int n = 0; n < 40; n++) {
                        mine.put(n);
                    }
                    for (int t = 0; t < 4; t++) {
                        mine.put(-1);
                    }
                    return null;
                });
        Locks.together(tasks);
        Frameworks.same(40, taken.size());
        Frameworks.same(40, takes.get());

        RBlockingQueue<String> late = both[1].getBlockingQueue("late");
        RDelayedQueue<String> delayed =
                both[0].getDelayedQueue(both[0].<String>getBlockingQueue("late"));
        long start = System.nanoTime();
        delayed.offer("second", 3_000, TimeUnit.MILLISECONDS);
        delayed.offer("first", 300, TimeUnit.MILLISECONDS);
        Frameworks.same("first", late.poll(20, TimeUnit.SECONDS));
        Frameworks.same("second", late.poll(20, TimeUnit.SECONDS));
        Frameworks.check(System.nanoTime() - start > 2_900_000_000L, "a delayed item came early");
        delayed.destroy();
    }

    private static void limiter(RedissonClient[] both) throws Exception {
        RRateLimiter mine = both[0].getRateLimiter("limiter");
        RRateLimiter theirs = both[1].getRateLimiter("limiter");
        mine.trySetRate(RateType.OVERALL, 5, Duration.ofSeconds(60));
        Frameworks.eventually("both have the limiter", theirs::isExists);
        int passed = 0;
        for (int n = 0; n < 10; n++) {
            passed += (n % 2 == 0 ? mine : theirs).tryAcquire() ? 1 : 0;
        }
        Frameworks.same(5, passed);
    }

    private static void batchAndTransaction(RedissonClient[] both) throws Exception {
        RBatch batch = both[0].createBatch();
        for (int n = 0; n < 50; n++) {
            batch.getAtomicLong("batch").incrementAndGetAsync();
        }
        batch.getMap("batch:map").fastPutAsync("k", "v");
        Frameworks.same(50L, batch.execute().getResponses().get(49));

        RTransaction transaction = both[1].createTransaction(TransactionOptions.defaults());
        transaction.<String, String>getMap("account").put("a", "1");
        transaction.<String>getBucket("receipt").set("paid");
        transaction.commit();
        Frameworks.same("paid", both[1].getBucket("receipt").get());
        RTransaction undone = both[1].createTransaction(TransactionOptions.defaults());
        undone.<String>getBucket("receipt").set("lost");
        undone.rollback();
        Frameworks.same("paid", both[1].getBucket("receipt").get());
    }

    private static void others(RedissonClient[] both) throws Exception {
        RScoredSortedSet<String> ranks = both[0].getScoredSortedSet("ranks");
        ranks.addAll(Map.of("a", 1.0, "b", 2.0, "c", 3.0));
        Frameworks.same(1, ranks.addAndGetRank(2.5, "a"));
        ranks.addScore("a", 1);
        Frameworks.same(List.of("b", "c", "a"), List.copyOf(ranks.readAll()));
        Frameworks.same("b", ranks.pollFirst());

        RBloomFilter<String> bloom = both[0].getBloomFilter("bloom");
        bloom.tryInit(1_000, 0.01);
        Frameworks.check(
                bloom.add("x") && bloom.contains("x") && !bloom.contains("y"), "the Bloom filter");

        Frameworks.check(both[0].getBucket("cas").compareAndSet(null, "1"), "no key, no value");
        Frameworks.check(!both[1].getBucket("cas").compareAndSet("0", "2"), "another value");
        both[0].getBucket("cas").expire(Duration.ofSeconds(60));
        Frameworks.check(both[0].getBucket("cas").remainTimeToLive() > 50_000, "the time to live");
        Frameworks.same(1L, both[0].getKeys().countExists("cas"));
        Frameworks.check(
                both[0].getKeys().getKeysByPattern("ca?").iterator().hasNext(), "keys by pattern");
        both[0].getHyperLogLog("hll").addAll(List.of("a", "b", "c", "a"));
        Frameworks.same(3L, both[0].getHyperLogLog("hll").count());
    }
}
