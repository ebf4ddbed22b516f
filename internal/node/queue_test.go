package node

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestQueueWorksOnAKeyOnceAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		running, count := map[string]bool{}, map[string]int{}
		go q.run(ctx, 4, func(_ context.Context, key string) (time.Duration, error) {
			mu.Lock()
			if running[key] {
				t.Error("two at a time")
			}
			running[key] = true
			count[key]++
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			running[key] = false
			mu.Unlock()
			return 0, nil
		})
		for range 10 {
			q.add("a")
			q.add("b")
		}
		time.Sleep(500 * time.Millisecond)
		for range 10 {
			q.add("a") // while it is worked on: once more, and only once
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if count["a"] != 2 || count["b"] != 1 {
			t.Errorf("worked on %v", count)
		}
		if len(q.items) != 0 {
			t.Errorf("%d keys are remembered", len(q.items))
		}
		cancel()
		synctest.Wait()
	})
}

func TestQueueTriesAgainWithGrowingPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		ctx, cancel := context.WithCancel(t.Context())
		var at []time.Time
		fail := true
		go q.run(ctx, 1, func(context.Context, string) (time.Duration, error) {
			at = append(at, time.Now())
			if fail {
				return 0, errors.New("no")
			}
			return 0, nil
		})
		q.add("a")
		time.Sleep(time.Minute)
		synctest.Wait()
		for i := 1; i < len(at); i++ {
			want := min(firstRetry<<(i-1), lastRetry)
			if got := at[i].Sub(at[i-1]); got != want {
				t.Errorf("pause %d is %s, want %s", i, got, want)
			}
		}
		fail = false
		n := len(at)
		q.add("a") // at once, whatever the pause
		synctest.Wait()
		if len(at) != n+1 {
			t.Error("an event did not end the pause")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(at) != n+1 {
			t.Error("success was tried again")
		}
		cancel()
		synctest.Wait()
	})
}

func TestQueueComesBackLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		var at []time.Duration
		go q.run(ctx, 1, func(context.Context, string) (time.Duration, error) {
			at = append(at, time.Since(start))
			if len(at) < 3 {
				return 10 * time.Second, nil
			}
			return 0, nil
		})
		q.add("a")
		time.Sleep(5 * time.Second)
		q.add("a") // takes the place of the later visit
		time.Sleep(time.Minute)
		cancel()
		synctest.Wait()
		want := []time.Duration{0, 5 * time.Second, 15 * time.Second}
		if len(at) != 3 || at[0] != want[0] || at[1] != want[1] || at[2] != want[2] {
			t.Errorf("at %v, want %v", at, want)
		}
	})
}
