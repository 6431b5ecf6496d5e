/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Faults that someone plays to a slave with simulated cells.
 *
 * native_sim: signal SIGUSR1 makes cell 0 over-voltage, and well again the next time; SIGUSR2 hangs
 * the main loop. QEMU: the two words behind the unique id (CONFIG_HELIO_UID_ADDRESS) are milliseconds
 * after boot at which cell 0 becomes over-voltage, and at which the main loop hangs; 0 is never.
 */
#include "helio_shell.h"

#include <zephyr/kernel.h>

#ifdef CONFIG_ARCH_POSIX
#include "posix_native_task.h"
#include "sim_host.h"

static void listen(void)
{
	helio_sim_host_listen();
}

NATIVE_TASK(listen, PRE_BOOT_1, 3);
#else
static bool is_due(size_t word)
{
	if (CONFIG_HELIO_UID_ADDRESS == 0) {
		return false;
	}

	uint32_t at_ms = ((const volatile uint32_t *)(uintptr_t)CONFIG_HELIO_UID_ADDRESS)[word];

	/* Memory that nobody wrote reads 0 in an emulator. */
	return at_ms != 0 && k_uptime_get() >= at_ms;
}
#endif

/* Whether cell 0 is over-voltage now. Does not return when the main loop is to hang. */
uint32_t helio_sim_over_voltage(void)
{
#ifdef CONFIG_ARCH_POSIX
	bool hang = helio_sim_host_hang(), over = helio_sim_host_over_voltage();
#else
	bool hang = is_due(3), over = is_due(2);
#endif
	if (hang) {
		printk("heliograph slave: main loop hangs, as asked for\n");
		for (;;) {
			k_busy_wait(1000);
		}
	}
	return over;
}
