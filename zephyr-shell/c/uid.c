/* SPDX-License-Identifier: Apache-2.0 */
/* The device's unique id of 64 bits, from wherever this board has one. */
#include "helio_shell.h"

#include <zephyr/drivers/hwinfo.h>
#include <zephyr/kernel.h>

#ifdef CONFIG_ARCH_POSIX
#include "cmdline.h"
#include "posix_native_task.h"

static uint64_t uid_option;

static void add_uid_option(void)
{
	static struct args_struct_t options[] = {
		{
			.option = "uid",
			.name = "number",
			.type = 'U',
			.dest = (void *)&uid_option,
			.descript = "Unique id of this device, 64 bits, not 0",
		},
		ARG_TABLE_ENDMARKER,
	};

	native_add_command_line_opts(options);
}

NATIVE_TASK(add_uid_option, PRE_BOOT_1, 2);
#endif

/* FNV-1a (Fowler, Noll, Vo), 64 bits: ids of chips are longer and differ in few places. */
static uint64_t fold(const uint8_t *bytes, size_t count)
{
	uint64_t hash = 0xcbf29ce484222325ULL;

	for (size_t i = 0; i < count; i++) {
		hash = (hash ^ bytes[i]) * 0x100000001b3ULL;
	}
	return hash;
}

/* 0 when nothing knows one. */
uint64_t helio_uid(void)
{
#ifdef CONFIG_ARCH_POSIX
	/* The parser of the command line fills what was not given with ones. */
	if (uid_option != 0 && uid_option != UINT64_MAX) {
		return uid_option;
	}
#endif
	if (CONFIG_HELIO_UID != 0) {
		return CONFIG_HELIO_UID;
	}
	if (CONFIG_HELIO_UID_ADDRESS != 0) {
		const volatile uint32_t *word =
			(const volatile uint32_t *)(uintptr_t)CONFIG_HELIO_UID_ADDRESS;
		uint64_t uid = word[0] | (uint64_t)word[1] << 32;

		if (uid != 0) {
			return uid;
		}
	}
#ifdef CONFIG_HWINFO
	uint8_t id[16];
	ssize_t length = hwinfo_get_device_id(id, sizeof(id));

	if (length > 0) {
		return fold(id, length);
	}
#else
	ARG_UNUSED(fold);
#endif
	return 0;
}
