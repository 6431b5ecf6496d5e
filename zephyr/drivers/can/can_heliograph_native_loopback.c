/*
 * SPDX-License-Identifier: Apache-2.0
 *
 * CAN and CAN FD controller of native_sim: three transmit mailboxes, filters, fault confinement.
 *
 *   can_send -> mailbox --SEND--> hub: arbitration, acknowledgement, error counters
 *               free    <--SENT-- hub
 *   filters             <--FRAME- hub
 *   state               <--STATE- hub
 *
 * The hub (`helio hub --can`) is the bus; host-tools/hub/src/record.rs describes the records. A thread
 * that polls the socket takes an interrupt's place. Without a hub the controller is one with an open
 * cable: it starts, its frames wait, and it looks for the hub ten times a second. In loopback mode
 * frames turn round here and no hub is needed.
 */

#define DT_DRV_COMPAT heliograph_native_loopback_can

#include <errno.h>
#include <string.h>

#include <cmdline.h>
#include <posix_native_task.h>

#include <zephyr/drivers/can.h>
#include <zephyr/kernel.h>
#include <zephyr/logging/log.h>
#include <zephyr/sys/byteorder.h>

#include "can_heliograph_native_loopback_host.h"

LOG_MODULE_REGISTER(can_heliograph_native_loopback, CONFIG_CAN_LOG_LEVEL);

#define MAILBOXES   4
#define VERSION     1
#define CORE_CLOCK  80000000
#define RETRY_MS    100
#define WARNING_AT  96

enum to_hub {
	START = 1,
	STOP = 2,
	SEND = 3,
	RECOVER = 4,
};

enum from_hub {
	STARTED = 16,
	FRAME = 17,
	SENT = 18,
	STATE = 19,
	REFUSED = 20,
};

#define EXTENDED BIT(0)
#define FD       BIT(1)
#define SWITCH   BIT(2)

struct mailbox {
	bool full;
	struct can_frame frame;
	can_tx_callback_t done;
	void *done_arg;
};

struct filter {
	can_rx_callback_t take;
	void *take_arg;
	struct can_filter filter;
};

struct controller_data {
	struct can_driver_data common;
	/* Guards everything below; its owner may take it again, so callbacks may call the driver. */
	struct k_mutex lock;
	struct k_sem free_mailboxes;
	/* Ends the thread's sleep. */
	struct k_sem wake;
	struct k_sem recovered;
	struct mailbox mailboxes[MAILBOXES];
	struct filter filters[CONFIG_CAN_MAX_FILTER];
	struct can_timing timing;
	struct can_timing timing_data;
	enum can_state state;
	struct can_bus_err_cnt errors;
	int fd;
	int64_t retry_at;
	/* The hub said why we cannot take part. */
	bool refused;
	bool told_no_hub;
	uint8_t input[512];
	size_t input_len;
	struct k_thread thread;

	K_KERNEL_STACK_MEMBER(stack, CONFIG_ARCH_POSIX_RECOMMENDED_STACK_SIZE);
};

struct controller_config {
	const struct can_driver_config common;
	const char *hub;
	/* From the command line, or NULL. */
	const char *const *own_hub;
};

static const char *hub_of_all;

static const char *hub_of(const struct device *dev)
{
	const struct controller_config *config = dev->config;

	if (*config->own_hub != NULL) {
		return *config->own_hub;
	}
	return hub_of_all != NULL ? hub_of_all : config->hub;
}

static uint32_t bit_rate(const struct can_timing *t)
{
	uint32_t quanta = 1 + t->prop_seg + t->phase_seg1 + t->phase_seg2;

	return CORE_CLOCK / (t->prescaler * quanta);
}

static void hang_up(const struct device *dev)
{
	struct controller_data *data = dev->data;

	if (data->fd >= 0) {
		heliograph_can_host_close(data->fd);
		data->fd = -1;
		data->input_len = 0;
		data->retry_at = k_uptime_get() + RETRY_MS;
	}
}

static void say(const struct device *dev, const uint8_t *record, size_t size)
{
	struct controller_data *data = dev->data;

	if (data->fd >= 0 && heliograph_can_host_write(data->fd, record, size) != 0) {
		LOG_WRN("%s: lost the CAN hub at %s", dev->name, hub_of(dev));
		hang_up(dev);
	}
}

static void say_frame(const struct device *dev, uint8_t mailbox, const struct can_frame *frame)
{
	uint8_t len = can_dlc_to_bytes(frame->dlc);
	uint8_t record[8 + CAN_MAX_DLEN] = {8 + len, SEND, mailbox};

	record[3] = ((frame->flags & CAN_FRAME_IDE) != 0 ? EXTENDED : 0) |
		    ((frame->flags & CAN_FRAME_FDF) != 0 ? FD : 0) |
		    ((frame->flags & CAN_FRAME_BRS) != 0 ? SWITCH : 0);
	sys_put_le32(frame->id, &record[4]);
	memcpy(&record[8], frame->data, len);
	say(dev, record, 8 + len);
}

/* Frees a mailbox and tells its user how it went. */
static void finish(const struct device *dev, struct mailbox *mailbox, int error)
{
	struct controller_data *data = dev->data;
	can_tx_callback_t done = mailbox->done;
	void *arg = mailbox->done_arg;

	mailbox->full = false;
	k_sem_give(&data->free_mailboxes);
	if (done != NULL) {
		done(dev, error, arg);
	}
}

static void finish_all(const struct device *dev, int error)
{
	struct controller_data *data = dev->data;

	for (int i = 0; i < MAILBOXES; i++) {
		if (data->mailboxes[i].full) {
			finish(dev, &data->mailboxes[i], error);
		}
	}
}

static void receive(const struct device *dev, const struct can_frame *frame)
{
	struct controller_data *data = dev->data;

	if (!IS_ENABLED(CONFIG_CAN_ACCEPT_RTR) && (frame->flags & CAN_FRAME_RTR) != 0) {
		return;
	}
	for (int i = 0; i < ARRAY_SIZE(data->filters); i++) {
		struct filter *filter = &data->filters[i];
		struct can_frame copy = *frame;

		if (filter->take != NULL && can_frame_matches_filter(frame, &filter->filter)) {
			filter->take(dev, &copy, filter->take_arg);
		}
	}
}

static void enter(const struct device *dev, enum can_state state)
{
	struct controller_data *data = dev->data;

	if (data->state == state) {
		return;
	}
	data->state = state;
	if (data->common.state_change_cb != NULL) {
		data->common.state_change_cb(dev, state, data->errors,
					     data->common.state_change_cb_user_data);
	}
	if (state == CAN_STATE_BUS_OFF) {
		finish_all(dev, -ENETUNREACH);
	}
}

static void handle_state(const struct device *dev, uint8_t confined, uint16_t tec, uint16_t rec)
{
	struct controller_data *data = dev->data;
	bool was_off = data->state == CAN_STATE_BUS_OFF;

	data->errors.tx_err_cnt = MIN(tec, UINT8_MAX);
	data->errors.rx_err_cnt = MIN(rec, UINT8_MAX);
	if (confined == 2) {
		enter(dev, CAN_STATE_BUS_OFF);
	} else if (confined == 1) {
		enter(dev, CAN_STATE_ERROR_PASSIVE);
	} else if (tec >= WARNING_AT || rec >= WARNING_AT) {
		enter(dev, CAN_STATE_ERROR_WARNING);
	} else {
		enter(dev, CAN_STATE_ERROR_ACTIVE);
	}
	if (was_off && confined != 2) {
		k_sem_give(&data->recovered);
	}
}

static void handle_record(const struct device *dev, const uint8_t *record, uint8_t size)
{
	struct controller_data *data = dev->data;
	struct can_frame frame = {0};

	switch (record[1]) {
	case FRAME:
		if (size < 8 || size > 8 + CAN_MAX_DLEN) {
			break;
		}
		frame.flags = ((record[3] & EXTENDED) != 0 ? CAN_FRAME_IDE : 0) |
			      ((record[3] & FD) != 0 ? CAN_FRAME_FDF : 0) |
			      ((record[3] & SWITCH) != 0 ? CAN_FRAME_BRS : 0);
		frame.id = sys_get_le32(&record[4]);
		frame.dlc = can_bytes_to_dlc(size - 8);
		memcpy(frame.data, &record[8], size - 8);
		receive(dev, &frame);
		break;
	case SENT:
		if (size >= 4 && record[2] < MAILBOXES && data->mailboxes[record[2]].full) {
			finish(dev, &data->mailboxes[record[2]], 0);
		}
		break;
	case STATE:
		if (size >= 8) {
			handle_state(dev, record[2], sys_get_le16(&record[4]),
				     sys_get_le16(&record[6]));
		}
		break;
	case REFUSED:
		data->refused = true;
		LOG_ERR("%s: %.*s", dev->name, size - 2, &record[2]);
		break;
	default:
		break;
	}
}

static void listen(const struct device *dev)
{
	struct controller_data *data = dev->data;
	int n = heliograph_can_host_read(data->fd, &data->input[data->input_len],
					 sizeof(data->input) - data->input_len);
	size_t at = 0;

	if (n < 0) {
		LOG_WRN("%s: lost the CAN hub at %s", dev->name, hub_of(dev));
		hang_up(dev);
		return;
	}
	data->input_len += n;
	while (data->fd >= 0 && data->common.started && data->input_len - at >= 2 &&
	       data->input_len - at >= data->input[at]) {
		uint8_t size = data->input[at];

		if (size < 2) {
			LOG_ERR("%s: %s is no CAN hub", dev->name, hub_of(dev));
			data->refused = true;
			hang_up(dev);
			return;
		}
		handle_record(dev, &data->input[at], size);
		at += size;
	}
	if (data->fd >= 0) {
		data->input_len -= at;
		memmove(data->input, &data->input[at], data->input_len);
	}
}

/* Takes part in the bus, with what waits in the mailboxes. */
static void join(const struct device *dev)
{
	struct controller_data *data = dev->data;
	uint8_t start[20] = {20, START, VERSION};

	data->fd = heliograph_can_host_open(hub_of(dev));
	if (data->fd < 0) {
		data->retry_at = k_uptime_get() + RETRY_MS;
		if (!data->told_no_hub) {
			data->told_no_hub = true;
			LOG_WRN("%s: no CAN hub at %s yet; start one: helio hub --can %s",
				dev->name, hub_of(dev), hub_of(dev));
		}
		return;
	}
	data->told_no_hub = false;
	start[3] = ((data->common.mode & CAN_MODE_FD) != 0 ? BIT(0) : 0) |
		   ((data->common.mode & CAN_MODE_LISTENONLY) != 0 ? BIT(1) : 0) |
		   ((data->common.mode & CAN_MODE_MANUAL_RECOVERY) != 0 ? BIT(2) : 0);
	sys_put_le32(bit_rate(&data->timing), &start[4]);
	sys_put_le32(bit_rate(IS_ENABLED(CONFIG_CAN_FD_MODE) ? &data->timing_data : &data->timing),
		     &start[8]);
	say(dev, start, sizeof(start));
	for (int i = 0; i < MAILBOXES; i++) {
		if (data->mailboxes[i].full) {
			say_frame(dev, i, &data->mailboxes[i].frame);
		}
	}
}

/* Loopback mode: the lowest identifier that waits is sent and received. */
static bool turn_round(const struct device *dev)
{
	struct controller_data *data = dev->data;
	struct mailbox *first = NULL;
	struct can_frame frame;

	for (int i = 0; i < MAILBOXES; i++) {
		struct mailbox *mailbox = &data->mailboxes[i];

		if (mailbox->full && (first == NULL || mailbox->frame.id < first->frame.id)) {
			first = mailbox;
		}
	}
	if (first == NULL) {
		return false;
	}
	frame = first->frame;
	finish(dev, first, 0);
	receive(dev, &frame);
	return true;
}

static void attend(void *arg1, void *arg2, void *arg3)
{
	const struct device *dev = arg1;
	struct controller_data *data = dev->data;

	ARG_UNUSED(arg2);
	ARG_UNUSED(arg3);
	while (true) {
		k_mutex_lock(&data->lock, K_FOREVER);
		if (!data->common.started) {
			/* Nothing to attend to. */
		} else if ((data->common.mode & CAN_MODE_LOOPBACK) != 0) {
			while (data->common.started && turn_round(dev)) {
			}
		} else if (data->fd >= 0) {
			listen(dev);
		} else if (!data->refused && k_uptime_get() >= data->retry_at) {
			join(dev);
		}
		k_mutex_unlock(&data->lock);
		(void)k_sem_take(&data->wake,
				 K_USEC(CONFIG_CAN_HELIOGRAPH_NATIVE_LOOPBACK_POLL_US));
	}
}

static int controller_send(const struct device *dev, const struct can_frame *frame,
			   k_timeout_t timeout, can_tx_callback_t done, void *arg)
{
	struct controller_data *data = dev->data;
	uint8_t known = CAN_FRAME_IDE | CAN_FRAME_RTR | CAN_FRAME_FDF | CAN_FRAME_BRS;
	bool fd = (frame->flags & CAN_FRAME_FDF) != 0;
	bool loopback = (data->common.mode & CAN_MODE_LOOPBACK) != 0;

	if ((frame->flags & ~known) != 0 ||
	    ((frame->flags & (CAN_FRAME_FDF | CAN_FRAME_BRS)) != 0 &&
	     (data->common.mode & CAN_MODE_FD) == 0)) {
		LOG_ERR("unsupported CAN frame flags 0x%02x", frame->flags);
		return -ENOTSUP;
	}
	if ((frame->flags & CAN_FRAME_RTR) != 0 && !loopback) {
		LOG_ERR("the hub carries no remote frames");
		return -ENOTSUP;
	}
	if ((data->common.mode & CAN_MODE_LISTENONLY) != 0 && !loopback) {
		LOG_ERR("a listen-only controller cannot send");
		return -ENOTSUP;
	}
	if (frame->dlc > (fd ? CANFD_MAX_DLC : CAN_MAX_DLC)) {
		LOG_ERR("DLC of %d exceeds maximum (%d)", frame->dlc,
			fd ? CANFD_MAX_DLC : CAN_MAX_DLC);
		return -EINVAL;
	}
	if (!data->common.started) {
		return -ENETDOWN;
	}
	if (data->state == CAN_STATE_BUS_OFF) {
		return -ENETUNREACH;
	}
	if (k_sem_take(&data->free_mailboxes, timeout) != 0) {
		return -EAGAIN;
	}
	k_mutex_lock(&data->lock, K_FOREVER);
	/* It may have changed while we waited. */
	if (!data->common.started || data->state == CAN_STATE_BUS_OFF) {
		int error = data->common.started ? -ENETUNREACH : -ENETDOWN;

		k_sem_give(&data->free_mailboxes);
		k_mutex_unlock(&data->lock);
		return error;
	}
	for (int i = 0; i < MAILBOXES; i++) {
		struct mailbox *mailbox = &data->mailboxes[i];

		if (!mailbox->full) {
			*mailbox = (struct mailbox){
				.full = true, .frame = *frame, .done = done, .done_arg = arg};
			if (loopback) {
				k_sem_give(&data->wake);
			} else {
				say_frame(dev, i, frame);
			}
			break;
		}
	}
	k_mutex_unlock(&data->lock);
	return 0;
}

static int controller_add_rx_filter(const struct device *dev, can_rx_callback_t take, void *arg,
				    const struct can_filter *filter)
{
	struct controller_data *data = dev->data;
	int id = -ENOSPC;

	if ((filter->flags & ~CAN_FILTER_IDE) != 0) {
		LOG_ERR("unsupported CAN filter flags 0x%02x", filter->flags);
		return -ENOTSUP;
	}
	k_mutex_lock(&data->lock, K_FOREVER);
	for (int i = 0; i < ARRAY_SIZE(data->filters); i++) {
		if (data->filters[i].take == NULL) {
			data->filters[i] = (struct filter){
				.take = take, .take_arg = arg, .filter = *filter};
			id = i;
			break;
		}
	}
	k_mutex_unlock(&data->lock);
	return id;
}

static void controller_remove_rx_filter(const struct device *dev, int id)
{
	struct controller_data *data = dev->data;

	if (id < 0 || id >= ARRAY_SIZE(data->filters)) {
		LOG_ERR("filter ID %d out of bounds", id);
		return;
	}
	k_mutex_lock(&data->lock, K_FOREVER);
	data->filters[id].take = NULL;
	k_mutex_unlock(&data->lock);
}

static int controller_get_capabilities(const struct device *dev, can_mode_t *cap)
{
	ARG_UNUSED(dev);
	*cap = CAN_MODE_NORMAL | CAN_MODE_LOOPBACK | CAN_MODE_LISTENONLY;
	if (IS_ENABLED(CONFIG_CAN_FD_MODE)) {
		*cap |= CAN_MODE_FD;
	}
	if (IS_ENABLED(CONFIG_CAN_MANUAL_RECOVERY_MODE)) {
		*cap |= CAN_MODE_MANUAL_RECOVERY;
	}
	return 0;
}

static int controller_start(const struct device *dev)
{
	struct controller_data *data = dev->data;

	if (data->common.started) {
		return -EALREADY;
	}
	k_mutex_lock(&data->lock, K_FOREVER);
	CAN_STATS_RESET(dev);
	data->errors = (struct can_bus_err_cnt){0};
	data->state = CAN_STATE_ERROR_ACTIVE;
	data->refused = false;
	data->retry_at = 0;
	data->common.started = true;
	if ((data->common.mode & CAN_MODE_LOOPBACK) == 0) {
		join(dev);
	}
	k_mutex_unlock(&data->lock);
	return 0;
}

static int controller_stop(const struct device *dev)
{
	struct controller_data *data = dev->data;

	if (!data->common.started) {
		return -EALREADY;
	}
	k_mutex_lock(&data->lock, K_FOREVER);
	data->common.started = false;
	/* Whoever hangs up has left the bus. */
	hang_up(dev);
	data->state = CAN_STATE_STOPPED;
	finish_all(dev, -ENETDOWN);
	k_mutex_unlock(&data->lock);
	return 0;
}

static int controller_set_mode(const struct device *dev, can_mode_t mode)
{
	struct controller_data *data = dev->data;
	can_mode_t supported;

	(void)controller_get_capabilities(dev, &supported);
	if ((mode & ~supported) != 0) {
		LOG_ERR("unsupported mode: 0x%08x", mode);
		return -ENOTSUP;
	}
	if (data->common.started) {
		return -EBUSY;
	}
	data->common.mode = mode;
	return 0;
}

static int controller_set_timing(const struct device *dev, const struct can_timing *timing)
{
	struct controller_data *data = dev->data;

	if (data->common.started) {
		return -EBUSY;
	}
	data->timing = *timing;
	return 0;
}

#ifdef CONFIG_CAN_FD_MODE
static int controller_set_timing_data(const struct device *dev, const struct can_timing *timing)
{
	struct controller_data *data = dev->data;

	if (data->common.started) {
		return -EBUSY;
	}
	data->timing_data = *timing;
	return 0;
}
#endif /* CONFIG_CAN_FD_MODE */

#ifdef CONFIG_CAN_MANUAL_RECOVERY_MODE
static int controller_recover(const struct device *dev, k_timeout_t timeout)
{
	struct controller_data *data = dev->data;
	const uint8_t record[2] = {2, RECOVER};

	if (!data->common.started) {
		return -ENETDOWN;
	}
	if ((data->common.mode & CAN_MODE_MANUAL_RECOVERY) == 0) {
		return -ENOTSUP;
	}
	if (data->state != CAN_STATE_BUS_OFF) {
		return 0;
	}
	k_sem_reset(&data->recovered);
	k_mutex_lock(&data->lock, K_FOREVER);
	say(dev, record, sizeof(record));
	k_mutex_unlock(&data->lock);
	return k_sem_take(&data->recovered, timeout) == 0 ? 0 : -EAGAIN;
}
#endif /* CONFIG_CAN_MANUAL_RECOVERY_MODE */

static int controller_get_state(const struct device *dev, enum can_state *state,
				struct can_bus_err_cnt *errors)
{
	struct controller_data *data = dev->data;

	if (state != NULL) {
		*state = data->common.started ? data->state : CAN_STATE_STOPPED;
	}
	if (errors != NULL) {
		*errors = data->errors;
	}
	return 0;
}

static void controller_set_state_change_callback(const struct device *dev,
						 can_state_change_callback_t callback, void *arg)
{
	struct controller_data *data = dev->data;

	k_mutex_lock(&data->lock, K_FOREVER);
	data->common.state_change_cb = callback;
	data->common.state_change_cb_user_data = arg;
	k_mutex_unlock(&data->lock);
}

static int controller_get_core_clock(const struct device *dev, uint32_t *rate)
{
	ARG_UNUSED(dev);
	*rate = CORE_CLOCK;
	return 0;
}

static int controller_get_max_filters(const struct device *dev, bool ide)
{
	ARG_UNUSED(dev);
	ARG_UNUSED(ide);
	return CONFIG_CAN_MAX_FILTER;
}

static DEVICE_API(can, controller_api) = {
	.start = controller_start,
	.stop = controller_stop,
	.get_capabilities = controller_get_capabilities,
	.set_mode = controller_set_mode,
	.set_timing = controller_set_timing,
	.send = controller_send,
	.add_rx_filter = controller_add_rx_filter,
	.remove_rx_filter = controller_remove_rx_filter,
#ifdef CONFIG_CAN_MANUAL_RECOVERY_MODE
	.recover = controller_recover,
#endif
	.get_state = controller_get_state,
	.set_state_change_callback = controller_set_state_change_callback,
	.get_core_clock = controller_get_core_clock,
	.get_max_filters = controller_get_max_filters,
	.timing_min = {.sjw = 1, .prop_seg = 0, .phase_seg1 = 1, .phase_seg2 = 1, .prescaler = 1},
	.timing_max = {.sjw = 128, .prop_seg = 0, .phase_seg1 = 256, .phase_seg2 = 128,
		       .prescaler = 512},
#ifdef CONFIG_CAN_FD_MODE
	.set_timing_data = controller_set_timing_data,
	.timing_data_min = {.sjw = 1, .prop_seg = 0, .phase_seg1 = 1, .phase_seg2 = 1,
			    .prescaler = 1},
	.timing_data_max = {.sjw = 16, .prop_seg = 0, .phase_seg1 = 32, .phase_seg2 = 16,
			    .prescaler = 32},
#endif
};

static int controller_init(const struct device *dev)
{
	const struct controller_config *config = dev->config;
	struct controller_data *data = dev->data;
	struct can_timing timing = {0};

	data->fd = -1;
	data->state = CAN_STATE_STOPPED;
	k_mutex_init(&data->lock);
	k_sem_init(&data->free_mailboxes, MAILBOXES, MAILBOXES);
	k_sem_init(&data->wake, 0, 1);
	k_sem_init(&data->recovered, 0, 1);
	if (can_calc_timing(dev, &timing, config->common.bitrate,
			    config->common.sample_point) < 0) {
		LOG_ERR("%s: no timing for %u bit/s", dev->name, config->common.bitrate);
		return -EINVAL;
	}
	data->timing = timing;
#ifdef CONFIG_CAN_FD_MODE
	if (can_calc_timing_data(dev, &timing, config->common.bitrate_data,
				 config->common.sample_point_data) < 0) {
		LOG_ERR("%s: no timing for %u bit/s", dev->name, config->common.bitrate_data);
		return -EINVAL;
	}
	data->timing_data = timing;
#endif
	k_thread_create(&data->thread, data->stack, K_KERNEL_STACK_SIZEOF(data->stack), attend,
			(void *)dev, NULL, NULL,
			CONFIG_CAN_HELIOGRAPH_NATIVE_LOOPBACK_THREAD_PRIORITY, 0, K_NO_WAIT);
	k_thread_name_set(&data->thread, dev->name);
	return 0;
}

#define CONTROLLER_INIT(inst)                                                                      \
	static const char *own_hub_##inst;                                                         \
	static const struct controller_config controller_config_##inst = {                         \
		.common = CAN_DT_DRIVER_CONFIG_INST_GET(inst, 0, 8000000),                         \
		.hub = DT_INST_PROP(inst, hub),                                                    \
		.own_hub = &own_hub_##inst,                                                        \
	};                                                                                         \
	static struct controller_data controller_data_##inst;                                      \
	CAN_DEVICE_DT_INST_DEFINE(inst, controller_init, NULL, &controller_data_##inst,            \
				  &controller_config_##inst, POST_KERNEL,                          \
				  CONFIG_CAN_INIT_PRIORITY, &controller_api);

DT_INST_FOREACH_STATUS_OKAY(CONTROLLER_INIT)

#define OWN_OPTION(inst)                                                                           \
	{                                                                                          \
		.option = DT_NODE_FULL_NAME(DT_DRV_INST(inst)) "-hub",                             \
		.name = "address",                                                                 \
		.type = 's',                                                                       \
		.dest = (void *)&own_hub_##inst,                                                   \
		.descript = "The same for this controller alone",                                  \
	},

static void add_options(void)
{
	static struct args_struct_t options[] = {
		{
			.option = "can-hub",
			.name = "address",
			.type = 's',
			.dest = (void *)&hub_of_all,
			.descript = "Where the CAN hub listens: 127.0.0.1:PORT, or a path",
		},
		DT_INST_FOREACH_STATUS_OKAY(OWN_OPTION)
		ARG_TABLE_ENDMARKER,
	};

	native_add_command_line_opts(options);
}

NATIVE_TASK(add_options, PRE_BOOT_1, 10);
