// Round-trips through go-redis with its defaults. Usage: client URL
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/redis/go-redis/v9"
)

var ctx = context.Background()

func main() {
	options, err := redis.ParseURL(os.Args[1])
	must(err)
	client := redis.NewClient(options)
	defer client.Close()
	binary(client)
	plain(client)
	pipeline(client)
	transaction(client)
	failure(client)
	database(options)
	fmt.Println("OK")
}

func binary(client *redis.Client) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	key := "go:" + string(all)
	must(client.Set(ctx, key, all, 0).Err())
	got, err := client.Get(ctx, key).Bytes()
	must(err)
	check(bytes.Equal(got, all), "binary value came back as %q", got)

	large := bytes.Repeat(all, 2048)
	must(client.Set(ctx, "go:large", large, 0).Err())
	got, err = client.Get(ctx, "go:large").Bytes()
	must(err)
	check(bytes.Equal(got, large), "a value of 512 KiB did not come back")
}

func plain(client *redis.Client) {
	_, err := client.Get(ctx, "go:absent").Result()
	check(errors.Is(err, redis.Nil), "an absent key is %v", err)
	must(client.Set(ctx, "go:ttl", "v", 100e9).Err())
	ttl, err := client.TTL(ctx, "go:ttl").Result()
	must(err)
	check(ttl > 90e9 && ttl <= 100e9, "TTL is %v", ttl)
	deleted, err := client.Del(ctx, "go:ttl", "go:absent").Result()
	must(err)
	check(deleted == 1, "DEL deleted %d", deleted)
}

func pipeline(client *redis.Client) {
	pipe := client.Pipeline()
	for i := 0; i < 100; i++ {
		pipe.Set(ctx, fmt.Sprintf("go:p%d", i), i, 0)
	}
	gets := make([]*redis.StringCmd, 100)
	for i := range gets {
		gets[i] = pipe.Get(ctx, fmt.Sprintf("go:p%d", i))
	}
	_, err := pipe.Exec(ctx)
	must(err)
	for i, get := range gets {
		check(get.Val() == fmt.Sprint(i), "pipeline: key %d is %q", i, get.Val())
	}
}

func transaction(client *redis.Client) {
	var sum *redis.IntCmd
	_, err := client.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
		pipe.Set(ctx, "go:n", 41, 0)
		sum = pipe.Incr(ctx, "go:n")
		return nil
	})
	must(err)
	check(sum.Val() == 42, "MULTI: sum is %d", sum.Val())

	err = client.Watch(ctx, func(tx *redis.Tx) error {
		must(client.Set(ctx, "go:n", 1, 0).Err())
		_, err := tx.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
			pipe.Set(ctx, "go:n", 2, 0)
			return nil
		})
		return err
	}, "go:n")
	check(errors.Is(err, redis.TxFailedErr), "a watched key changed: %v", err)
}

func failure(client *redis.Client) {
	must(client.Set(ctx, "go:word", "abc", 0).Err())
	err := client.Incr(ctx, "go:word").Err()
	check(err != nil && strings.Contains(err.Error(), "not an integer"), "INCR of a word: %v", err)
}

func database(options *redis.Options) {
	inOne := *options
	inOne.DB = 1
	client := redis.NewClient(&inOne)
	defer client.Close()
	must(client.Set(ctx, "go:one", "1", 0).Err())
	must(client.Del(ctx, "go:one").Err())
}

func must(err error) {
	check(err == nil, "%v", err)
}

func check(good bool, format string, args ...any) {
	if !good {
		fmt.Printf(format+"\n", args...)
		os.Exit(1)
	}
}
