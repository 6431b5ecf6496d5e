/* SPDX-License-Identifier: Apache-2.0 */
/* Gate, balancing, luminaires and watchdog of the heliograph,node of the devicetree. */
#include "helio_shell.h"

#include <zephyr/drivers/gpio.h>
#include <zephyr/drivers/pwm.h>
#include <zephyr/drivers/watchdog.h>
#include <zephyr/kernel.h>

BUILD_ASSERT(DT_HAS_COMPAT_STATUS_OKAY(heliograph_node),
	     "The devicetree has no node with compatible = \"heliograph,node\". Add one in "
	     "boards/<board>.overlay of the application; dts/bindings/heliograph,node.yaml tells "
	     "its properties.");

#if DT_NODE_HAS_PROP(HELIO_NODE, gate_gpios)
static const struct gpio_dt_spec gate = GPIO_DT_SPEC_GET(HELIO_NODE, gate_gpios);
#endif

#define OUTPUT(node, prop, index) GPIO_DT_SPEC_GET_BY_IDX(node, prop, index)

#if DT_NODE_HAS_PROP(HELIO_NODE, balance_gpios)
static const struct gpio_dt_spec balance[] = {
	DT_FOREACH_PROP_ELEM_SEP(HELIO_NODE, balance_gpios, OUTPUT, (,))};
#endif

#if DT_NODE_HAS_PROP(HELIO_NODE, pwms)
#define CHANNEL(node, prop, index) PWM_DT_SPEC_GET_BY_IDX(node, index)
static const struct pwm_dt_spec luminaires[] = {
	DT_FOREACH_PROP_ELEM_SEP(HELIO_NODE, pwms, CHANNEL, (,))};
#elif DT_NODE_HAS_PROP(HELIO_NODE, luminaire_gpios)
static const struct gpio_dt_spec luminaires[] = {
	DT_FOREACH_PROP_ELEM_SEP(HELIO_NODE, luminaire_gpios, OUTPUT, (,))};
#endif

__maybe_unused static int outputs_init(const struct gpio_dt_spec *outputs, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (!gpio_is_ready_dt(&outputs[i])) {
			return -ENODEV;
		}
		int rc = gpio_pin_configure_dt(&outputs[i], GPIO_OUTPUT_INACTIVE);

		if (rc != 0) {
			return rc;
		}
	}
	return 0;
}

__maybe_unused static int outputs_set(const struct gpio_dt_spec *outputs, size_t count,
				      uint32_t mask)
{
	int worst = 0;

	for (size_t i = 0; i < count; i++) {
		int rc = gpio_pin_set_dt(&outputs[i], (mask >> i) & 1);

		worst = worst != 0 ? worst : rc;
	}
	return worst;
}

/* Everything off. */
int helio_node_init(void)
{
	int rc = 0;

#if DT_NODE_HAS_PROP(HELIO_NODE, gate_gpios)
	rc = outputs_init(&gate, 1);
#endif
#if DT_NODE_HAS_PROP(HELIO_NODE, balance_gpios)
	rc = rc != 0 ? rc : outputs_init(balance, ARRAY_SIZE(balance));
#endif
#if DT_NODE_HAS_PROP(HELIO_NODE, pwms)
	for (size_t i = 0; i < ARRAY_SIZE(luminaires); i++) {
		rc = rc != 0 ? rc : (pwm_is_ready_dt(&luminaires[i]) ? 0 : -ENODEV);
	}
#elif DT_NODE_HAS_PROP(HELIO_NODE, luminaire_gpios)
	rc = rc != 0 ? rc : outputs_init(luminaires, ARRAY_SIZE(luminaires));
#endif
	return rc;
}

int helio_gate_set(uint32_t on)
{
#if DT_NODE_HAS_PROP(HELIO_NODE, gate_gpios)
	return gpio_pin_set_dt(&gate, on != 0);
#else
	return on != 0 ? -ENODEV : 0;
#endif
}

int helio_balance_set(uint32_t mask)
{
#if DT_NODE_HAS_PROP(HELIO_NODE, balance_gpios)
	return outputs_set(balance, ARRAY_SIZE(balance), mask);
#else
	return mask != 0 ? -ENODEV : 0;
#endif
}

int helio_luminaires_set(uint32_t mask)
{
#if DT_NODE_HAS_PROP(HELIO_NODE, pwms)
	int worst = 0;

	for (size_t i = 0; i < ARRAY_SIZE(luminaires); i++) {
		const struct pwm_dt_spec *l = &luminaires[i];
		int rc = pwm_set_pulse_dt(l, (mask >> i) & 1 ? l->period : 0);

		worst = worst != 0 ? worst : rc;
	}
	return worst;
#elif DT_NODE_HAS_PROP(HELIO_NODE, luminaire_gpios)
	return outputs_set(luminaires, ARRAY_SIZE(luminaires), mask);
#else
	return mask != 0 ? -ENODEV : 0;
#endif
}

#if DT_NODE_HAS_PROP(HELIO_NODE, watchdog) && defined(CONFIG_WATCHDOG)
static const struct device *const watchdog = DEVICE_DT_GET(DT_PHANDLE(HELIO_NODE, watchdog));
static int watchdog_channel = -1;

/* From then on, helio_watchdog_feed must be called more often than that. */
int helio_watchdog_start(uint32_t timeout_ms)
{
	struct wdt_timeout_cfg config = {
		.window = {.min = 0, .max = timeout_ms},
		.flags = WDT_FLAG_RESET_SOC,
	};

	if (!device_is_ready(watchdog)) {
		return -ENODEV;
	}
	watchdog_channel = wdt_install_timeout(watchdog, &config);
	if (watchdog_channel < 0) {
		return watchdog_channel;
	}

	int rc = wdt_setup(watchdog, WDT_OPT_PAUSE_HALTED_BY_DBG);

	/* Not every watchdog can be halted by a debugger. */
	return rc == -ENOTSUP ? wdt_setup(watchdog, 0) : rc;
}

int helio_watchdog_feed(void)
{
	return wdt_feed(watchdog, watchdog_channel);
}
#else
int helio_watchdog_start(uint32_t timeout_ms)
{
	return -ENODEV;
}

int helio_watchdog_feed(void)
{
	return -ENODEV;
}
#endif
