// Frameworks in Java, as parts of one program: a JVM takes seconds to start. Each part has a client
// on each of two nodes, and keys of its own; those that are named run at once.
// Usage: java Frameworks PART...
import java.net.URI;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;

public class Frameworks {
    static final Duration SOON = Duration.ofSeconds(60);
    static final Duration DEADLINE = Duration.ofSeconds(110);

    interface Part {
        void run(URI first, URI second) throws Exception;
    }

    private static final Map<String, Part> PARTS =
            Map.of(
                    "Locks", Locks::run,
                    "Objects", Objects::run,
                    "Buckets", Buckets::run,
                    "SpringData", SpringData::run,
                    "SpringSession", SpringSession::run,
                    "Caching", Caching::run,
                    "Secured", Secured::run);

    public static void main(String[] args) throws Exception {
        URI first = new URI(System.getenv("REDIS_URL"));
        URI second = new URI(System.getenv("SECOND_URL"));
        Thread watchdog = new Thread(Frameworks::endInTime);
        watchdog.setDaemon(true);
        watchdog.start();
        List<Thread> running = new ArrayList<>();
        for (String name : args) {
            running.add(start(name, PARTS.get(name), first, second));
        }
        for (Thread part : running) {
            part.join();
        }
        System.out.println("OK");
        System.exit(0);
    }

    private static Thread start(String name, Part part, URI first, URI second) {
        Thread thread =
                new Thread(
                        () -> {
                            long start = System.nanoTime();
                            try {
                                part.run(first, second);
                            } catch (Throwable problem) {
                                fail(name, problem);
                            }
                            System.err.println(
                                    name + ": " + (System.nanoTime() - start) / 1_000_000 + " ms");
                        });
        thread.start();
        return thread;
    }

    private static void endInTime() {
        try {
            Thread.sleep(DEADLINE.toMillis());
        } catch (InterruptedException end) {
            return;
        }
        fail("the program", new AssertionError("its time is up"));
    }

    private static void fail(String where, Throwable problem) {
        System.out.println("in " + where + ":");
        problem.printStackTrace(System.out);
        System.out.flush();
        Runtime.getRuntime().halt(1);
    }

    static int database(URI url) {
        return Integer.parseInt(url.getPath().substring(1));
    }

    static void check(boolean good, String problem) {
        if (!good) {
            throw new AssertionError(problem);
        }
    }

    static void same(Object expected, Object found) {
        check(expected.equals(found), "expected " + expected + ", found " + found);
    }

    // Waits until a condition holds.
    static void eventually(String what, Callable<Boolean> condition) throws Exception {
        long end = System.nanoTime() + SOON.toNanos();
        while (!condition.call()) {
            check(System.nanoTime() < end, "not in time: " + what);
            Thread.sleep(20);
        }
    }
}
