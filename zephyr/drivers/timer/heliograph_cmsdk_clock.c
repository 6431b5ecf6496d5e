/*
 * SPDX-License-Identifier: Apache-2.0
 *
 * Kernel clock on two CMSDK timers: one counts through all 32 bits and is never touched, so that no
 * reading depends on an interrupt; the other is loaded for each timeout.
 */

#define DT_DRV_COMPAT heliograph_cmsdk_clock

#include <zephyr/drivers/timer/system_timer.h>
#include <zephyr/init.h>
#include <zephyr/irq.h>
#include <zephyr/kernel.h>
#include <zephyr/sys_clock.h>

BUILD_ASSERT(IS_ENABLED(CONFIG_TICKLESS_KERNEL), "this clock has no periodic tick");

/* Cortex-M System Design Kit Technical Reference Manual (Arm DDI 0479), 4.1. */
struct timer {
	volatile uint32_t ctrl;
	volatile uint32_t value; /* counts down */
	volatile uint32_t reload;
	volatile uint32_t interrupts; /* read: raised; write: clear */
};

/* CTRL */
#define ENABLE     BIT(0)
#define IRQ_ENABLE BIT(3)

#define ALARM DT_INST_PHANDLE(0, alarm)

static struct timer *const count = (struct timer *)DT_INST_REG_ADDR(0);
static struct timer *const alarm = (struct timer *)DT_REG_ADDR(ALARM);

#define CYCLES_PER_TICK (CONFIG_SYS_CLOCK_HW_CYCLES_PER_SEC / CONFIG_SYS_CLOCK_TICKS_PER_SEC)
/* Half the range of the counter: what has passed and what is to come fit into it together. */
#define LONGEST_TICKS   (INT32_MAX / CYCLES_PER_TICK)
/* Shorter ones QEMU makes longer. */
#define SHORTEST_CYCLES 250U

/* What the kernel has been told: a whole number of ticks. */
static uint32_t announced;

uint32_t sys_clock_cycle_get_32(void)
{
	return UINT32_MAX - count->value;
}

uint32_t sys_clock_elapsed(void)
{
	return (sys_clock_cycle_get_32() - announced) / CYCLES_PER_TICK;
}

void sys_clock_set_timeout(int32_t ticks, bool idle)
{
	ARG_UNUSED(idle);
	if (ticks == K_TICKS_FOREVER || ticks > LONGEST_TICKS) {
		ticks = LONGEST_TICKS;
	}

	/* The kernel counts from the tick in which we are; one tick ahead is the end of this one. */
	uint32_t key = irq_lock();
	uint32_t passed = sys_clock_cycle_get_32() - announced;
	uint32_t due = (passed / CYCLES_PER_TICK + MAX(ticks, 1)) * CYCLES_PER_TICK;

	alarm->ctrl = 0;
	alarm->interrupts = 1;
	alarm->value = MAX(due - passed, SHORTEST_CYCLES);
	alarm->ctrl = ENABLE | IRQ_ENABLE;
	irq_unlock(key);
}

static void handle(const void *unused)
{
	ARG_UNUSED(unused);
	alarm->interrupts = 1;

	uint32_t ticks = sys_clock_elapsed();

	announced += ticks * CYCLES_PER_TICK;
	sys_clock_announce(ticks);
}

static int start(void)
{
	count->ctrl = 0;
	count->reload = UINT32_MAX;
	count->ctrl = ENABLE;
	/* Once each time. */
	alarm->reload = 0;
	IRQ_CONNECT(DT_IRQN(ALARM), DT_IRQ(ALARM, priority), handle, NULL, 0);
	irq_enable(DT_IRQN(ALARM));
	sys_clock_set_timeout(1, false);
	return 0;
}

SYS_INIT(start, PRE_KERNEL_2, CONFIG_SYSTEM_CLOCK_INIT_PRIORITY);
