// Frameworks in Go: redsync, asynq and go-redis, each with a client on each of two nodes. The parts
// that are named run at once, with keys of their own. Usage: frameworks PART...
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-redsync/redsync/v4"
	pool "github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

const (
	soon     = 60 * time.Second
	deadline = 110 * time.Second
	// go-redis gives up after 5 s by default and sends a script again, though the server goes on:
	// too little for a busy machine, and others who write to the same keys from another node.
	patience = 40 * time.Second
)

var ctx = context.Background()

func main() {
	time.AfterFunc(deadline, func() { fail(errors.New("the program's time is up")) })
	urls := []string{os.Getenv("REDIS_URL"), os.Getenv("SECOND_URL")}
	parts := map[string]func([]string){
		"locks": locks, "tasks": tasks, "schedules": schedules, "groups": groups, "queues": queues,
	}
	var running sync.WaitGroup
	for _, name := range os.Args[1:] {
		running.Go(func() {
			start := time.Now()
			parts[name](urls)
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, time.Since(start))
		})
	}
	running.Wait()
	fmt.Println("OK")
}

func fail(err error) {
	fmt.Println(err)
	os.Exit(1)
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func check(good bool, format string, args ...any) {
	if !good {
		panic(fmt.Sprintf(format, args...))
	}
}

func eventually(what string, condition func() bool) {
	for end := time.Now().Add(soon); !condition(); time.Sleep(20 * time.Millisecond) {
		check(time.Now().Before(end), "not in time: %s", what)
	}
}

func client(url string) *redis.Client {
	options := must(redis.ParseURL(url))
	options.ReadTimeout = patience
	return redis.NewClient(options)
}

func connection(url string) asynq.RedisClientOpt {
	options := must(redis.ParseURL(url))
	return asynq.RedisClientOpt{Addr: options.Addr, DB: options.DB, ReadTimeout: patience}
}

// redsync: many add with a read and a write of their own, under a lock.
func locks(urls []string) {
	clients := []*redis.Client{client(urls[0]), client(urls[1])}
	must(clients[0].Set(ctx, "go:count", 0, 0).Result())
	var inside atomic.Int32
	var all sync.WaitGroup
	const workers, times = 6, 5
	for w := range workers {
		here := clients[w%2]
		all.Go(func() {
			locker := redsync.New(pool.NewPool(here))
			retry := redsync.WithRetryDelay(10 * time.Millisecond)
			mutex := locker.NewMutex("go:lock", redsync.WithTries(5000), retry)
			for range times {
				if err := mutex.Lock(); err != nil {
					panic(err)
				}
				check(inside.Add(1) == 1, "two hold the lock")
				count := must(here.Get(ctx, "go:count").Int())
				must(here.Set(ctx, "go:count", count+1, 0).Result())
				inside.Add(-1)
				check(must(mutex.Unlock()), "a lock is lost")
			}
		})
	}
	all.Wait()
	count := must(clients[0].IncrBy(ctx, "go:count", 0).Result())
	check(count == workers*times, "counted %d", count)

	brief := redsync.WithExpiry(2 * time.Second)
	mine := redsync.New(pool.NewPool(clients[0])).NewMutex("go:brief", brief)
	long := redsync.WithExpiry(time.Minute)
	theirs := redsync.New(pool.NewPool(clients[1])).NewMutex("go:brief", long)
	if err := mine.Lock(); err != nil {
		panic(err)
	}
	check(theirs.TryLock() != nil, "two hold a lock")
	check(must(mine.Extend()), "a lock cannot be extended")
	eventually("the lock expires", func() bool { return theirs.TryLock() == nil })
	_, err := mine.Unlock()
	check(err != nil, "a lock that was lost could be unlocked")
	check(must(theirs.Unlock()), "a lock is lost")
}

// asynq: each task is processed once; one fails at first, one is late, one is there already.
func tasks(urls []string) {
	there := connection(urls[1])
	queue := asynq.NewClient(connection(urls[0]))
	inspector := asynq.NewInspector(there)
	const count = 20
	var done [count]atomic.Int32
	var tries atomic.Int32
	var late atomic.Int64
	mux := asynq.NewServeMux()
	mux.HandleFunc("count", func(_ context.Context, task *asynq.Task) error {
		done[task.Payload()[0]].Add(1)
		_, err := task.ResultWriter().Write([]byte("counted"))
		return err
	})
	mux.HandleFunc("fail", func(context.Context, *asynq.Task) error {
		if tries.Add(1) < 3 {
			return errors.New("on purpose")
		}
		return nil
	})
	mux.HandleFunc("hopeless", func(context.Context, *asynq.Task) error {
		return fmt.Errorf("on purpose: %w", asynq.SkipRetry)
	})
	mux.HandleFunc("late", func(context.Context, *asynq.Task) error {
		late.Store(time.Now().UnixMilli())
		return nil
	})
	start := time.Now()
	for n := range count {
		must(queue.Enqueue(asynq.NewTask("count", []byte{byte(n)}), asynq.Retention(time.Hour)))
	}
	// asynq keeps whole seconds, so it may come up to a second early.
	must(queue.Enqueue(asynq.NewTask("late", nil), asynq.ProcessIn(2*time.Second)))
	must(queue.Enqueue(asynq.NewTask("fail", nil), asynq.MaxRetry(5)))
	must(queue.Enqueue(asynq.NewTask("hopeless", nil)))
	unique := func() error {
		task := asynq.NewTask("count", []byte{0})
		_, err := queue.Enqueue(task, asynq.Unique(time.Hour), asynq.Queue("idle"))
		return err
	}
	check(unique() == nil, "a unique task is refused")
	check(errors.Is(unique(), asynq.ErrDuplicateTask), "a unique task is there twice")

	servers := serve(urls, map[string]int{"default": 1}, mux)
	stat := func() *asynq.QueueInfo { return must(inspector.GetQueueInfo("default")) }
	eventually("all tasks are done", func() bool {
		// The other node may know of no task yet.
		info, err := inspector.GetQueueInfo("default")
		return err == nil && info.Processed-info.Failed == count+2 && info.Completed == count
	})
	for n := range count {
		check(done[n].Load() == 1, "task %d was processed %d times", n, done[n].Load())
	}
	check(tries.Load() == 3, "%d tries", tries.Load())
	check(late.Load()-start.UnixMilli() >= 900, "a late task came early")
	check(stat().Archived == 1, "a hopeless task is not archived")
	hopeless := must(inspector.ListArchivedTasks("default"))[0]
	check(hopeless.LastErr == "on purpose: skip retry for the task", "%s", hopeless.LastErr)
	check(must(inspector.DeleteAllArchivedTasks("default")) == 1, "the archive")
	completed := must(inspector.ListCompletedTasks("default", asynq.PageSize(count)))
	check(len(completed) == count && string(completed[0].Result) == "counted", "the results")
	check(must(inspector.DeleteAllPendingTasks("idle")) == 1, "the idle queue")
	for _, server := range servers {
		server.Shutdown()
	}
}

// A server for the queues on each node.
func serve(urls []string, names map[string]int, handler asynq.Handler) []*asynq.Server {
	var servers []*asynq.Server
	for _, url := range urls {
		server := asynq.NewServer(connection(url), asynq.Config{
			Concurrency:              2,
			Queues:                   names,
			LogLevel:                 asynq.WarnLevel,
			TaskCheckInterval:        50 * time.Millisecond,
			DelayedTaskCheckInterval: 100 * time.Millisecond,
			GroupGracePeriod:         time.Second,
			GroupAggregator:          asynq.GroupAggregatorFunc(together),
			RetryDelayFunc:           retryDelay,
		})
		if err := server.Start(handler); err != nil {
			panic(err)
		}
		servers = append(servers, server)
	}
	return servers
}

func retryDelay(int, error, *asynq.Task) time.Duration {
	return 100 * time.Millisecond
}

func together(_ string, tasks []*asynq.Task) *asynq.Task {
	return asynq.NewTask("together", []byte{byte(len(tasks))})
}

// asynq's scheduler, on one node, for servers on both.
func schedules(urls []string) {
	quiet := &asynq.SchedulerOpts{LogLevel: asynq.WarnLevel}
	scheduler := asynq.NewScheduler(connection(urls[0]), quiet)
	must(scheduler.Register("@every 1s", asynq.NewTask("tick", nil), asynq.Queue("ticks")))
	var ticks atomic.Int32
	handler := func(context.Context, *asynq.Task) error {
		ticks.Add(1)
		return nil
	}
	servers := serve(urls, map[string]int{"ticks": 1}, asynq.HandlerFunc(handler))
	if err := scheduler.Start(); err != nil {
		panic(err)
	}
	eventually("two ticks", func() bool { return ticks.Load() >= 2 })
	scheduler.Shutdown()
	for _, server := range servers {
		server.Shutdown()
	}
}

// asynq's groups: tasks that become one.
func groups(urls []string) {
	queue := asynq.NewClient(connection(urls[0]))
	for n := range 10 {
		part := asynq.NewTask("part", []byte{byte(n)})
		must(queue.Enqueue(part, asynq.Queue("groups"), asynq.Group("g")))
	}
	var sum, calls atomic.Int32
	handler := func(_ context.Context, task *asynq.Task) error {
		sum.Add(int32(task.Payload()[0]))
		calls.Add(1)
		return nil
	}
	servers := serve(urls, map[string]int{"groups": 1}, asynq.HandlerFunc(handler))
	eventually("the group is aggregated", func() bool { return sum.Load() == 10 })
	check(calls.Load() == 1, "%d aggregations", calls.Load())
	for _, server := range servers {
		server.Shutdown()
	}
}

// go-redis: a reliable queue of lists, and optimistic transactions, on both nodes.
func queues(urls []string) {
	clients := []*redis.Client{client(urls[0]), client(urls[1])}
	const items = 30
	var all sync.WaitGroup
	for w := range 4 {
		here := clients[w%2]
		all.Go(func() {
			for {
				item := must(here.BLMove(ctx, "go:queue", "go:working", "LEFT", "RIGHT", soon).Result())
				if item == "end" {
					return
				}
				increment(here, "go:done")
				must(here.HIncrBy(ctx, "go:seen", item, 1).Result())
			}
		})
	}
	for n := range items {
		must(clients[n%2].RPush(ctx, "go:queue", n).Result())
	}
	for range 4 {
		must(clients[0].RPush(ctx, "go:queue", "end").Result())
	}
	all.Wait()
	eventually("all is seen", func() bool {
		return len(must(clients[0].HGetAll(ctx, "go:seen").Result())) == items
	})
	for item, times := range must(clients[0].HGetAll(ctx, "go:seen").Result()) {
		check(times == "1", "item %s was processed %s times", item, times)
	}
	count := must(clients[1].IncrBy(ctx, "go:done", 0).Result())
	check(count == items, "counted %d of %d", count, items)
}

// Adds one with WATCH, MULTI and EXEC.
func increment(client *redis.Client, key string) {
	add := func(tx *redis.Tx) error {
		count, err := tx.Get(ctx, key).Int()
		if err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
		_, err = tx.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
			pipe.Set(ctx, key, count+1, 0)
			return nil
		})
		return err
	}
	eventually("a transaction", func() bool {
		err := client.Watch(ctx, add, key)
		check(err == nil || errors.Is(err, redis.TxFailedErr), "%v", err)
		return err == nil
	})
}
