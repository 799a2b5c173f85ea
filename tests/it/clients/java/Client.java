// Round-trips through Jedis with its defaults. Usage: java -cp 'jars/*' Client.java PORT
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import redis.clients.jedis.Jedis;
import redis.clients.jedis.Pipeline;
import redis.clients.jedis.Response;
import redis.clients.jedis.Transaction;
import redis.clients.jedis.exceptions.JedisDataException;
import redis.clients.jedis.params.SetParams;

public class Client {
    public static void main(String[] args) {
        String url = "redis://127.0.0.1:" + args[0];
        try (Jedis client = new Jedis(url)) {
            binary(client);
            plain(client);
            pipeline(client);
            transaction(client);
            failure(client);
        }
        try (Jedis client = new Jedis(url + "/1")) {
            client.set("java:one", "1");
            check(client.del("java:one") == 1, "database 1");
        }
        System.out.println("OK");
    }

    static void binary(Jedis client) {
        byte[] bytes = new byte[256];
        for (int i = 0; i < bytes.length; i++) {
            bytes[i] = (byte) i;
        }
        client.set(bytes, bytes);
        check(Arrays.equals(client.get(bytes), bytes), "a binary value did not come back");
        byte[] large = new byte[512 * 1024];
        Arrays.fill(large, (byte) 0xfe);
        client.set("java:large".getBytes(), large);
        check(Arrays.equals(client.get("java:large".getBytes()), large), "a value of 512 KiB did not come back");
    }

    static void plain(Jedis client) {
        check(client.get("java:absent") == null, "an absent key has a value");
        client.set("java:ttl", "v", SetParams.setParams().ex(100));
        long ttl = client.ttl("java:ttl");
        check(ttl > 90 && ttl <= 100, "TTL is " + ttl);
        check(client.del("java:ttl", "java:absent") == 1, "DEL");
    }

    static void pipeline(Jedis client) {
        Pipeline pipeline = client.pipelined();
        List<Response<String>> got = new ArrayList<>();
        for (int i = 0; i < 100; i++) {
            pipeline.set("java:p" + i, "" + i);
        }
        for (int i = 0; i < 100; i++) {
            got.add(pipeline.get("java:p" + i));
        }
        pipeline.sync();
        for (int i = 0; i < 100; i++) {
            check(got.get(i).get().equals("" + i), "pipeline: key " + i + " is " + got.get(i).get());
        }
    }

    static void transaction(Jedis client) {
        Transaction transaction = client.multi();
        transaction.set("java:n", "41");
        Response<Long> sum = transaction.incr("java:n");
        transaction.exec();
        check(sum.get() == 42, "MULTI: sum is " + sum.get());

        client.watch("java:n");
        client.set("java:n", "1");
        Transaction lost = client.multi();
        lost.set("java:n", "2");
        check(lost.exec() == null, "a watched key changed, and EXEC went on");
    }

    static void failure(Jedis client) {
        client.set("java:word", "abc");
        try {
            client.incr("java:word");
        } catch (JedisDataException error) {
            check(error.getMessage().contains("not an integer"), error.getMessage());
            return;
        }
        check(false, "INCR of a word went well");
    }

    static void check(boolean good, String problem) {
        if (!good) {
            System.out.println(problem);
            System.exit(1);
        }
    }
}
