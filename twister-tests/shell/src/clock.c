/* SPDX-License-Identifier: Apache-2.0 */
#include <zephyr/kernel.h>
#include <zephyr/ztest.h>

#include "helio_shell.h"

#define MS NSEC_PER_MSEC

/* News of the tests before would end a wait early. */
static void forget(void *unused)
{
	ARG_UNUSED(unused);
	helio_wait_until(0, 0);
}

ZTEST_SUITE(clock, NULL, NULL, forget, NULL, NULL);

ZTEST(clock, test_time_never_runs_backwards)
{
	uint64_t last = helio_now_ns();

	for (int i = 0; i < 10000; i++) {
		uint64_t now = helio_now_ns();

		zassert_true(now >= last);
		last = now;
	}
}

ZTEST(clock, test_time_runs_as_fast_as_the_kernel_s)
{
	uint64_t ours = helio_now_ns();
	int64_t theirs = k_uptime_get();

	k_sleep(K_MSEC(200));

	uint64_t passed = (helio_now_ns() - ours) / MS;
	int64_t expected = k_uptime_get() - theirs;

	zassert_within((int64_t)passed, expected, 5, "%d ms, the kernel %d ms", (int)passed,
		       (int)expected);
}

ZTEST(clock, test_a_wait_ends_at_its_deadline_and_not_before)
{
	for (uint32_t spin = 0; spin <= 1; spin++) {
		uint64_t deadline = helio_now_ns() + 7 * MS + 33333;

		helio_wait_until(deadline, spin);

		uint64_t late = helio_now_ns() - deadline;

		zassert_true((int64_t)late >= 0, "early");
		zassert_true(late < 2 * MS, "%u ns late", (uint32_t)late);
	}
}

ZTEST(clock, test_a_spinning_wait_is_late_by_less_than_a_tick)
{
	uint64_t deadline = helio_now_ns() + 5 * MS + 50000;

	helio_wait_until(deadline, 1);

	uint64_t late = helio_now_ns() - deadline;

	zassert_true((int64_t)late >= 0, "early");
	zassert_true(late < NSEC_PER_SEC / CONFIG_SYS_CLOCK_TICKS_PER_SEC, "%u ns late",
		     (uint32_t)late);
}

ZTEST(clock, test_a_deadline_in_the_past_does_not_wait)
{
	uint64_t now = helio_now_ns();

	helio_wait_until(0, 0);
	helio_wait_until(now, 1);
	zassert_true(helio_now_ns() - now < 2 * MS);
}

static void wake(struct k_timer *timer)
{
	ARG_UNUSED(timer);
	helio_wake();
}

static K_TIMER_DEFINE(waker, wake, NULL);

ZTEST(clock, test_what_happens_ends_a_wait)
{
	for (uint32_t spin = 0; spin <= 1; spin++) {
		uint64_t start = helio_now_ns();

		k_timer_start(&waker, K_MSEC(20), K_NO_WAIT);
		helio_wait_until(start + 5000 * MS, spin);

		uint64_t passed = (helio_now_ns() - start) / MS;

		zassert_within((int64_t)passed, 20, 5, "%d ms", (int)passed);
	}
}

ZTEST(clock, test_news_before_a_wait_are_not_lost)
{
	uint64_t start = helio_now_ns();

	helio_wake();
	helio_wait_until(start + 5000 * MS, 0);
	zassert_true(helio_now_ns() - start < 5 * MS);
}
