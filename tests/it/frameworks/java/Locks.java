// Redisson: locks, semaphores and latches that clients of two nodes share.
import org.redisson.Redisson;
import org.redisson.api.RCountDownLatch;
import org.redisson.api.RLock;
import org.redisson.api.RPermitExpirableSemaphore;
import org.redisson.api.RReadWriteLock;
import org.redisson.api.RSemaphore;
import org.redisson.api.RedissonClient;
import org.redisson.client.codec.StringCodec;
import org.redisson.config.Config;

import java.net.URI;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

class Locks {
    static void run(URI first, URI second) throws Exception {
        RedissonClient[] both = {client(first), client(second)};
        counting(both, "lock", false);
        counting(both, "fair", true);
        reentrantAndLost(both);
        readersAndWriter(both);
        semaphores(both);
        latch(both);
        for (RedissonClient one : both) {
            one.shutdown();
        }
    }

    static RedissonClient client(URI url) {
        Config config = new Config();
        config.setThreads(4).setNettyThreads(4);
        config.useSingleServer()
                .setAddress("redis://" + url.getAuthority())
                .setDatabase(Frameworks.database(url))
                // A busy machine, and others who write to the same key from another node.
                .setTimeout(40_000)
                .setConnectionPoolSize(16)
                .setConnectionMinimumIdleSize(2);
        return Redisson.create(config);
    }

    static void together(List<Callable<Void>> tasks) throws Exception {
        ExecutorService threads = Executors.newFixedThreadPool(tasks.size());
        for (Future<Void> task : threads.invokeAll(tasks)) {
            task.get();
        }
        threads.shutdown();
    }

    // Threads of both clients add with a read and a write of their own, under a lock.
    private static void counting(RedissonClient[] both, String name, boolean fair)
            throws Exception {
        both[0].getBucket(name + ":count", StringCodec.INSTANCE).set("0");
        AtomicInteger inside = new AtomicInteger();
        List<Callable<Void>> tasks = new ArrayList<>();
        int threads = 6;
        int times = 4;
        for (int t = 0; t < threads; t++) {
            RedissonClient client = both[t % 2];
            tasks.add(
                    () -> {
                        RLock lock = fair ? client.getFairLock(name) : client.getLock(name);
                        for (int n = 0; n < times; n++) {
                            lock.lock();
                            Frameworks.same(1, inside.incrementAndGet());
                            var count =
                                    client.<String>getBucket(name + ":count", StringCodec.INSTANCE);
                            count.set("" + (Integer.parseInt(count.get()) + 1));
                            inside.decrementAndGet();
                            lock.unlock();
                        }
                        return null;
                    });
        }
        together(tasks);
        Frameworks.same(
                (long) threads * times, both[0].getAtomicLong(name + ":count").addAndGet(0));
    }

    private static void reentrantAndLost(RedissonClient[] both) throws Exception {
        RLock lock = both[0].getLock("reentrant");
        RLock theirs = both[1].getLock("reentrant");
        lock.lock();
        lock.lock();
        Frameworks.same(2, lock.getHoldCount());
        Frameworks.check(!theirs.tryLock(), "two hold a lock");
        lock.unlock();
        Frameworks.check(!theirs.tryLock(100, TimeUnit.MILLISECONDS), "a lock was left too early");
        // The waiter hears of the release by a message.
        Thread waiter = new Thread(theirs::lock);
        waiter.start();
        Thread.sleep(200);
        lock.unlock();
        waiter.join(Frameworks.SOON.toMillis());
        Frameworks.check(!waiter.isAlive(), "the waiter has not got the lock");
        theirs.forceUnlock();

        // A lock with a time of its own is free when that is over.
        lock.lock(300, TimeUnit.MILLISECONDS);
        Frameworks.check(theirs.tryLock(20, 10, TimeUnit.SECONDS), "a lock outlives its time");
        try {
            lock.unlock();
            Frameworks.check(false, "a lock that was lost could be unlocked");
        } catch (IllegalMonitorStateException expected) {
            theirs.unlock();
        }
        RLock all = both[0].getMultiLock(both[0].getLock("m1"), both[0].getLock("m2"));
        all.lock();
        Frameworks.check(!both[1].getLock("m2").tryLock(), "a lock of several is free");
        all.unlock();
        Frameworks.check(
                both[1].getLock("m2").tryLock(20, TimeUnit.SECONDS), "a lock of several stays");
        both[1].getLock("m2").unlock();
    }

    private static void readersAndWriter(RedissonClient[] both) throws Exception {
        RReadWriteLock mine = both[0].getReadWriteLock("rw");
        RReadWriteLock theirs = both[1].getReadWriteLock("rw");
        mine.readLock().lock();
        Frameworks.check(theirs.readLock().tryLock(20, TimeUnit.SECONDS), "two cannot read");
        Frameworks.check(!theirs.writeLock().tryLock(), "one writes while others read");
        mine.readLock().unlock();
        theirs.readLock().unlock();
        Frameworks.check(theirs.writeLock().tryLock(20, TimeUnit.SECONDS), "nobody can write");
        Frameworks.check(!mine.readLock().tryLock(), "one reads while another one writes");
        theirs.writeLock().unlock();
    }

    private static void semaphores(RedissonClient[] both) throws Exception {
        RSemaphore[] semaphores = {
            both[0].getSemaphore("semaphore"), both[1].getSemaphore("semaphore")
        };
        Frameworks.check(semaphores[0].trySetPermits(3), "a new semaphore has permits");
        AtomicInteger inside = new AtomicInteger();
        List<Callable<Void>> tasks = new ArrayList<>();
        for (int t = 0; t < 8; t++) {
            RSemaphore semaphore = semaphores[t % 2];
            tasks.add(
                    () -> {
                        semaphore.acquire();
                        Frameworks.check(
                                inside.incrementAndGet() <= 3, "more than three have a permit");
                        Thread.sleep(20);
                        inside.decrementAndGet();
                        semaphore.release();
                        return null;
                    });
        }
        together(tasks);
        Frameworks.same(3, semaphores[0].drainPermits());

        RPermitExpirableSemaphore expirable = both[0].getPermitExpirableSemaphore("expirable");
        RPermitExpirableSemaphore theirs = both[1].getPermitExpirableSemaphore("expirable");
        expirable.trySetPermits(1);
        String lost = theirs.tryAcquire(20, 1, TimeUnit.SECONDS);
        Frameworks.check(lost != null, "no permit");
        Frameworks.check(expirable.tryAcquire() == null, "a second permit");
        String next = expirable.tryAcquire(20, 60, TimeUnit.SECONDS);
        Frameworks.check(next != null && !theirs.tryRelease(lost), "a permit outlives its time");
        expirable.release(next);
    }

    private static void latch(RedissonClient[] both) throws Exception {
        RCountDownLatch mine = both[0].getCountDownLatch("latch");
        RCountDownLatch theirs = both[1].getCountDownLatch("latch");
        mine.trySetCount(2);
        Frameworks.eventually("the latch is set", () -> theirs.getCount() == 2);
        AtomicInteger through = new AtomicInteger();
        Thread waiter =
                new Thread(
                        () -> {
                            try {
                                theirs.await();
                                through.incrementAndGet();
                            } catch (InterruptedException end) {
                                throw new AssertionError(end);
                            }
                        });
        waiter.start();
        mine.countDown();
        Thread.sleep(50);
        Frameworks.same(0, through.get());
        mine.countDown();
        waiter.join(Frameworks.SOON.toMillis());
        Frameworks.same(1, through.get());
    }
}
