// Bucket4j with Lettuce: a bucket of tokens that clients of two nodes share.
import io.github.bucket4j.Bucket;
import io.github.bucket4j.BucketConfiguration;
import io.github.bucket4j.distributed.ExpirationAfterWriteStrategy;
import io.github.bucket4j.distributed.proxy.ProxyManager;
import io.github.bucket4j.redis.lettuce.Bucket4jLettuce;
import io.lettuce.core.RedisClient;

import java.net.URI;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.atomic.AtomicInteger;

class Buckets {
    static void run(URI first, URI second) throws Exception {
        RedisClient[] clients = {
            RedisClient.create(first.toString()), RedisClient.create(second.toString())
        };
        BucketConfiguration twenty =
                BucketConfiguration.builder()
                        .addLimit(
                                limit ->
                                        limit.capacity(20)
                                                .refillIntervally(20, Duration.ofHours(1)))
                        .build();
        BucketConfiguration refilled =
                BucketConfiguration.builder()
                        .addLimit(
                                limit -> limit.capacity(2).refillGreedy(10, Duration.ofSeconds(1)))
                        .build();
        List<ProxyManager<byte[]>> managers = new ArrayList<>();
        for (RedisClient client : clients) {
            managers.add(
                    Bucket4jLettuce.casBasedBuilder(client)
                            .expirationAfterWrite(
                                    ExpirationAfterWriteStrategy
                                            .basedOnTimeForRefillingBucketUpToMax(
                                                    Duration.ofSeconds(10)))
                            .build());
        }
        byte[] key = "bucket".getBytes();
        AtomicInteger passed = new AtomicInteger();
        List<Callable<Void>> tasks = new ArrayList<>();
        for (int t = 0; t < 4; t++) {
            Bucket bucket = managers.get(t % 2).builder().build(key, () -> twenty);
            tasks.add(
                    () -> {
                        for (int n = 0; n < 8; n++) {
                            passed.addAndGet(bucket.tryConsume(1) ? 1 : 0);
                        }
                        return null;
                    });
        }
        Locks.together(tasks);
        Frameworks.same(20, passed.get());
        var refused =
                managers.get(1).builder().build(key, () -> twenty).tryConsumeAndReturnRemaining(1);
        Frameworks.check(
                !refused.isConsumed() && refused.getNanosToWaitForRefill() > 0, "there are tokens");

        Bucket quick = managers.get(0).builder().build("quick".getBytes(), () -> refilled);
        Frameworks.check(quick.tryConsume(2), "a new bucket is full");
        Frameworks.check(
                quick.asBlocking().tryConsume(2, Duration.ofSeconds(20)), "no token comes back");
        managers.get(0).removeProxy(key);
        Frameworks.check(
                managers.get(0).getProxyConfiguration(key).isEmpty(), "a removed bucket is there");
        for (RedisClient client : clients) {
            client.shutdown(Duration.ZERO, Duration.ofSeconds(1));
        }
    }
}
