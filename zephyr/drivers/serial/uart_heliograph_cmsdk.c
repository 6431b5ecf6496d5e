/*
 * SPDX-License-Identifier: Apache-2.0
 *
 * UART of Arm's Cortex-M System Design Kit: one byte each way, two interrupt lines.
 *
 * The hardware raises an interrupt when a byte has come or gone, not while there is one or room
 * for one. So enabling an interrupt whose reason is already there sets it pending by hand, and
 * "pending" is the state of the buffers behind the enable bits.
 */

#define DT_DRV_COMPAT heliograph_cmsdk_uart

#include <cmsis_core.h>

#include <zephyr/device.h>
#include <zephyr/drivers/uart.h>
#include <zephyr/irq.h>
#include <zephyr/kernel.h>

/* Cortex-M System Design Kit Technical Reference Manual (Arm DDI 0479), 4.3. */
struct registers {
	volatile uint32_t data;
	volatile uint32_t state;
	volatile uint32_t ctrl;
	volatile uint32_t interrupts; /* read: raised; write: clear */
	volatile uint32_t divider;
};

/* STATE */
#define TX_FULL BIT(0)
#define RX_FULL BIT(1)
/* CTRL */
#define TX_ENABLE     BIT(0)
#define RX_ENABLE     BIT(1)
#define TX_IRQ_ENABLE BIT(2)
#define RX_IRQ_ENABLE BIT(3)
/* INTSTATUS and INTCLEAR */
#define TX_IRQ BIT(0)
#define RX_IRQ BIT(1)

struct uart_config_ {
	struct registers *regs;
	uint32_t clock_hz;
	uint32_t baud;
	int tx_irq;
	int rx_irq;
	void (*connect)(void);
};

struct uart_data {
	uart_irq_callback_user_data_t callback;
	void *arg;
};

static struct registers *regs_of(const struct device *dev)
{
	const struct uart_config_ *config = dev->config;

	return config->regs;
}

static int uart_init(const struct device *dev)
{
	const struct uart_config_ *config = dev->config;

	if (config->baud != 0) {
		/* 16 is the smallest divider that the hardware takes. */
		config->regs->divider = MAX(config->clock_hz / config->baud, 16);
	}
	config->regs->ctrl = TX_ENABLE | RX_ENABLE;
	config->regs->interrupts = TX_IRQ | RX_IRQ;
	if (IS_ENABLED(CONFIG_UART_INTERRUPT_DRIVEN)) {
		config->connect();
	}
	return 0;
}

static int uart_poll_in_(const struct device *dev, unsigned char *c)
{
	struct registers *regs = regs_of(dev);

	if ((regs->state & RX_FULL) == 0) {
		return -1;
	}
	*c = (unsigned char)regs->data;
	return 0;
}

static void uart_poll_out_(const struct device *dev, unsigned char c)
{
	struct registers *regs = regs_of(dev);

	while ((regs->state & TX_FULL) != 0) {
	}
	regs->data = c;
}

#ifdef CONFIG_UART_INTERRUPT_DRIVEN
static void uart_isr(const struct device *dev)
{
	struct uart_data *data = dev->data;

	/* Cleared before the buffers are looked at: what changes after that raises it again. */
	regs_of(dev)->interrupts = TX_IRQ | RX_IRQ;
	if (data->callback != NULL) {
		data->callback(dev, data->arg);
	}
}

static int uart_fifo_fill_(const struct device *dev, const uint8_t *from, int len)
{
	struct registers *regs = regs_of(dev);
	int n = 0;

	/* In emulation the byte is often gone at once. */
	while (n < len && (regs->state & TX_FULL) == 0) {
		regs->data = from[n++];
	}
	return n;
}

static int uart_fifo_read_(const struct device *dev, uint8_t *to, const int len)
{
	struct registers *regs = regs_of(dev);
	int n = 0;

	while (n < len && (regs->state & RX_FULL) != 0) {
		to[n++] = (uint8_t)regs->data;
	}
	return n;
}

static int irq_tx_ready(const struct device *dev)
{
	struct registers *regs = regs_of(dev);

	return (regs->ctrl & TX_IRQ_ENABLE) != 0 && (regs->state & TX_FULL) == 0;
}

static int irq_rx_ready(const struct device *dev)
{
	struct registers *regs = regs_of(dev);

	return (regs->ctrl & RX_IRQ_ENABLE) != 0 && (regs->state & RX_FULL) != 0;
}

static void enable(const struct device *dev, uint32_t bit, bool on)
{
	struct registers *regs = regs_of(dev);
	unsigned int key = irq_lock();

	if (on) {
		regs->ctrl |= bit;
	} else {
		regs->ctrl &= ~bit;
	}
	irq_unlock(key);
}

static void irq_tx_enable(const struct device *dev)
{
	const struct uart_config_ *config = dev->config;

	enable(dev, TX_IRQ_ENABLE, true);
	if (irq_tx_ready(dev)) {
		NVIC_SetPendingIRQ(config->tx_irq);
	}
}

static void irq_tx_disable(const struct device *dev)
{
	enable(dev, TX_IRQ_ENABLE, false);
}

static int irq_tx_complete(const struct device *dev)
{
	return (regs_of(dev)->state & TX_FULL) == 0;
}

static void irq_rx_enable(const struct device *dev)
{
	const struct uart_config_ *config = dev->config;

	enable(dev, RX_IRQ_ENABLE, true);
	if (irq_rx_ready(dev)) {
		NVIC_SetPendingIRQ(config->rx_irq);
	}
}

static void irq_rx_disable(const struct device *dev)
{
	enable(dev, RX_IRQ_ENABLE, false);
}

static int irq_is_pending(const struct device *dev)
{
	return irq_rx_ready(dev) || irq_tx_ready(dev);
}

static int irq_update(const struct device *dev)
{
	ARG_UNUSED(dev);
	return 1;
}

static void irq_err(const struct device *dev)
{
	ARG_UNUSED(dev);
}

static void irq_callback_set(const struct device *dev, uart_irq_callback_user_data_t callback,
			     void *arg)
{
	struct uart_data *data = dev->data;

	data->callback = callback;
	data->arg = arg;
}
#endif /* CONFIG_UART_INTERRUPT_DRIVEN */

static DEVICE_API(uart, uart_api) = {
	.poll_in = uart_poll_in_,
	.poll_out = uart_poll_out_,
#ifdef CONFIG_UART_INTERRUPT_DRIVEN
	.fifo_fill = uart_fifo_fill_,
	.fifo_read = uart_fifo_read_,
	.irq_tx_enable = irq_tx_enable,
	.irq_tx_disable = irq_tx_disable,
	.irq_tx_ready = irq_tx_ready,
	.irq_tx_complete = irq_tx_complete,
	.irq_rx_enable = irq_rx_enable,
	.irq_rx_disable = irq_rx_disable,
	.irq_rx_ready = irq_rx_ready,
	.irq_err_enable = irq_err,
	.irq_err_disable = irq_err,
	.irq_is_pending = irq_is_pending,
	.irq_update = irq_update,
	.irq_callback_set = irq_callback_set,
#endif
};

#ifdef CONFIG_UART_INTERRUPT_DRIVEN
#define CONNECT(inst, line)                                                                        \
	IRQ_CONNECT(DT_INST_IRQ_BY_NAME(inst, line, irq),                                          \
		    DT_INST_IRQ_BY_NAME(inst, line, priority), uart_isr,                           \
		    DEVICE_DT_INST_GET(inst), 0);                                                  \
	irq_enable(DT_INST_IRQ_BY_NAME(inst, line, irq));
#else
#define CONNECT(inst, line)
#endif

#define UART_INIT(inst)                                                                            \
	static void connect_##inst(void)                                                           \
	{                                                                                          \
		CONNECT(inst, tx)                                                                  \
		CONNECT(inst, rx)                                                                  \
	}                                                                                          \
	static const struct uart_config_ config_##inst = {                                         \
		.regs = (struct registers *)DT_INST_REG_ADDR(inst),                                \
		.clock_hz = DT_INST_PROP_BY_PHANDLE(inst, clocks, clock_frequency),                \
		.baud = DT_INST_PROP_OR(inst, current_speed, 0),                                   \
		.tx_irq = DT_INST_IRQ_BY_NAME(inst, tx, irq),                                      \
		.rx_irq = DT_INST_IRQ_BY_NAME(inst, rx, irq),                                      \
		.connect = connect_##inst,                                                         \
	};                                                                                         \
	static struct uart_data data_##inst;                                                       \
	DEVICE_DT_INST_DEFINE(inst, uart_init, NULL, &data_##inst, &config_##inst, PRE_KERNEL_1,   \
			      CONFIG_SERIAL_INIT_PRIORITY, &uart_api);

DT_INST_FOREACH_STATUS_OKAY(UART_INIT)
