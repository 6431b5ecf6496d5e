/* SPDX-License-Identifier: Apache-2.0 */
/* Uptime in nanoseconds, and the one place where the main loop sleeps. */
#include "helio_shell.h"

#include <zephyr/kernel.h>
#include <zephyr/sys/reboot.h>

static K_SEM_DEFINE(wake, 0, 1);

/* The hardware counts 32 bits, which the main loop reads long before they wrap. */
static uint64_t cycles;
static uint32_t counted;

uint64_t helio_now_ns(void)
{
	unsigned int key = irq_lock();
	uint32_t now = k_cycle_get_32();

	/*
	 * SysTick falls back in QEMU (dts/bindings/timer says why; mps2/an386 has another clock). That
	 * is no wrap of 32 bits: time stands still until the count is there again.
	 */
	if ((int32_t)(now - counted) > 0) {
		cycles += now - counted;
		counted = now;
	}

	uint64_t total = cycles;

	irq_unlock(key);

	uint32_t hz = sys_clock_hw_cycles_per_sec();

	if (NSEC_PER_SEC % hz == 0) {
		return total * (NSEC_PER_SEC / hz);
	}
	return total / hz * NSEC_PER_SEC + total % hz * NSEC_PER_SEC / hz;
}

/* From any context: whoever waits looks again. */
void helio_wake(void)
{
	k_sem_give(&wake);
}

/*
 * Returns at the deadline, at most a tick late, or earlier when something has happened. With `spin`
 * the last tick or two pass awake, so that a slot on RS485 is not missed by a tick. Not on
 * native_sim, where a microsecond awake costs the host many.
 */
void helio_wait_until(uint64_t deadline_ns, uint32_t spin)
{
	const uint64_t tick_ns = NSEC_PER_SEC / CONFIG_SYS_CLOCK_TICKS_PER_SEC;

	spin = IS_ENABLED(CONFIG_ARCH_POSIX) ? 0 : spin;
	for (;;) {
		uint64_t now = helio_now_ns();

		if (now >= deadline_ns) {
			(void)k_sem_take(&wake, K_NO_WAIT);
			return;
		}

		uint64_t ticks = (deadline_ns - now) / tick_ns;

		/* Never so long that the counter could wrap unseen. */
		ticks = MIN(ticks, CONFIG_SYS_CLOCK_TICKS_PER_SEC);
		if (!spin) {
			/* A timeout of n ticks would end between n and n + 1 ticks from now. */
			k_timeout_t until = K_TIMEOUT_ABS_TICKS(k_uptime_ticks() + ticks + 1);

			if (k_sem_take(&wake, until) == 0) {
				return;
			}
		} else if (ticks > 1) {
			if (k_sem_take(&wake, K_TICKS(ticks - 1)) == 0) {
				return;
			}
		} else if (k_sem_take(&wake, K_NO_WAIT) == 0) {
			return;
		} else {
			k_busy_wait(1);
		}
	}
}

void helio_reboot(void)
{
	sys_reboot(SYS_REBOOT_COLD);
}

/* Kept over a reset and anything after power on, so that it differs from start to start. */
static __noinit uint32_t session;

uint32_t helio_session(void)
{
	return ++session;
}
