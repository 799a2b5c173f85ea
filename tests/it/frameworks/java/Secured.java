// Lettuce over TLS, with a certificate that names its user.
import io.lettuce.core.ClientOptions;
import io.lettuce.core.LettuceFutures;
import io.lettuce.core.RedisClient;
import io.lettuce.core.RedisFuture;
import io.lettuce.core.RedisURI;
import io.lettuce.core.SslOptions;
import io.lettuce.core.api.StatefulRedisConnection;
import io.lettuce.core.api.sync.RedisCommands;

import java.io.File;
import java.net.URI;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;

class Secured {
    static void run(URI first, URI second) throws Exception {
        SslOptions tls =
                SslOptions.builder()
                        .jdkSslProvider()
                        .trustManager(file("CA_FILE"))
                        .keyManager(file("CERTIFICATE_FILE"), file("KEY_FILE"), new char[0])
                        .build();
        RedisClient client = RedisClient.create(RedisURI.create(first));
        client.setOptions(ClientOptions.builder().sslOptions(tls).build());
        StatefulRedisConnection<String, String> connection = client.connect();
        RedisCommands<String, String> commands = connection.sync();
        Frameworks.same("lettuce", commands.aclWhoami());

        String large = "v".repeat(3_000_000);
        commands.set("lettuce:large", large);
        Frameworks.same(large, commands.get("lettuce:large"));
        List<RedisFuture<Long>> sums = new ArrayList<>();
        for (int number = 0; number < 1000; number++) {
            sums.add(connection.async().incr("lettuce:sum"));
        }
        LettuceFutures.awaitAll(Frameworks.SOON, sums.toArray(new RedisFuture[0]));
        Frameworks.same(1000L, sums.get(999).get());
        commands.multi();
        commands.set("lettuce:sum", "1");
        commands.incr("lettuce:sum");
        Frameworks.same(2L, commands.exec().get(1));
        client.shutdown(Duration.ZERO, Duration.ofSeconds(1));
    }

    private static File file(String variable) {
        return new File(System.getenv(variable));
    }
}
