// Lettuce with a cache on the client's side: what another client changes is read again.
import io.lettuce.core.RedisClient;
import io.lettuce.core.TrackingArgs;
import io.lettuce.core.api.StatefulRedisConnection;
import io.lettuce.core.support.caching.CacheAccessor;
import io.lettuce.core.support.caching.CacheFrontend;
import io.lettuce.core.support.caching.ClientSideCaching;

import java.net.URI;
import java.time.Duration;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

class Caching {
    static void run(URI first, URI second) throws Exception {
        RedisClient client = RedisClient.create(first.toString());
        RedisClient others = RedisClient.create(second.toString());
        StatefulRedisConnection<String, String> caching = client.connect();
        StatefulRedisConnection<String, String> writer = others.connect();
        Map<String, String> cache = new ConcurrentHashMap<>();
        CacheFrontend<String, String> frontend =
                ClientSideCaching.enable(
                        CacheAccessor.forMap(cache), caching, TrackingArgs.Builder.enabled());

        for (String value : new String[] {"one", "two", "three"}) {
            writer.sync().set("lettuce:cached", value);
            Frameworks.eventually(value, () -> value.equals(frontend.get("lettuce:cached")));
            Frameworks.same(value, cache.get("lettuce:cached"));
        }
        writer.sync().del("lettuce:cached");
        Frameworks.eventually("the invalidation", () -> !cache.containsKey("lettuce:cached"));
        Frameworks.check(frontend.get("lettuce:cached") == null, "a deleted key has a value");
        // What is absent is filled in by the loader, once for both.
        Frameworks.same("loaded", frontend.get("lettuce:cached", () -> "loaded"));
        Frameworks.eventually(
                "the loaded value", () -> "loaded".equals(writer.sync().get("lettuce:cached")));
        writer.sync().psetex("lettuce:cached", 200, "short");
        Frameworks.eventually("the key expires", () -> frontend.get("lettuce:cached") == null);
        client.shutdown(Duration.ZERO, Duration.ofSeconds(1));
        others.shutdown(Duration.ZERO, Duration.ofSeconds(1));
    }
}
