/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What outlives a reset, as settings of Zephyr: a record of the core's, and a name of the device that
 * clients may change.
 *
 *   helio/record   helio_store_open, fill, helio_store_close --> system's work queue --> flash
 *   helio/name     settings group of SMP                     --> mcumgr's            --> flash
 *
 * Flash is written in threads below the main loop's priority, so that a sector that is erased
 * holds up nobody. The buffer is the main loop's until it closes it and the queue's until it has
 * been written.
 */
#include "helio_shell.h"

#include <errno.h>

#ifdef CONFIG_HELIO_STORE

#include <string.h>

#include <zephyr/kernel.h>
#include <zephyr/settings/settings.h>
#include <zephyr/sys/atomic.h>

#define RECORD "helio/record"
#define NAME   "helio/name"

static uint8_t record[CONFIG_HELIO_STORE_SIZE];
static size_t record_length;
static char device_name[HELIO_NAME_SIZE + 1];
/* Only what is in flash becomes the record, nothing that a client says. */
static bool loading;
static atomic_t failed;

static int set(const char *key, size_t length, settings_read_cb read, void *from)
{
	if (strcmp(key, "record") == 0 && loading) {
		if (length > sizeof(record)) {
			return -EMSGSIZE;
		}

		ssize_t got = read(from, record, length);

		record_length = MAX(got, 0);
		return MIN(got, 0);
	}
	if (strcmp(key, "name") == 0) {
		if (length > HELIO_NAME_SIZE) {
			return -EINVAL;
		}

		ssize_t got = read(from, device_name, length);

		device_name[MAX(got, 0)] = '\0';
		return MIN(got, 0);
	}
	return -ENOENT;
}

static int get(const char *key, char *to, int size)
{
	size_t length = strlen(device_name);

	if (strcmp(key, "name") != 0) {
		return -ENOENT;
	}
	if (size < length) {
		return -EMSGSIZE;
	}
	memcpy(to, device_name, length);
	return length;
}

static int export(int (*one)(const char *key, const void *value, size_t length))
{
	return device_name[0] == '\0' ? 0 : one(NAME, device_name, strlen(device_name));
}

SETTINGS_STATIC_HANDLER_DEFINE(helio, "helio", get, set, NULL, export);

/* Once, before anything else here: reads what is in flash. */
int helio_store_start(void)
{
	int rc = settings_subsys_init();

	if (rc == 0) {
		loading = true;
		rc = settings_load_subtree("helio");
		loading = false;
	}
	return rc;
}

/* The record as it was read or last closed; the buffer is lent until the next helio_store_open. */
int helio_store_record(const uint8_t **from)
{
	*from = record;
	return record_length;
}

/* Characters of the name, 0 when there is none. */
int helio_store_name(uint8_t *to, size_t size)
{
	size_t length = MIN(strlen(device_name), size);

	memcpy(to, device_name, length);
	return length;
}

static void write(struct k_work *work)
{
	ARG_UNUSED(work);
	if (settings_save_one(RECORD, record, record_length) != 0) {
		atomic_set(&failed, 1);
		helio_wake();
	}
}

static K_WORK_DEFINE(writing, write);

/* Bytes that may be filled in; -EBUSY while the record before is still being written. */
int helio_store_open(uint8_t **to)
{
	if (k_work_busy_get(&writing) != 0) {
		return -EBUSY;
	}
	*to = record;
	return sizeof(record);
}

/* So many have been filled in and are to be written. */
int helio_store_close(size_t count)
{
	record_length = count;

	int rc = k_work_submit(&writing);

	return MIN(rc, 0);
}

/* Whether a record could not be written, told once. */
uint32_t helio_store_failed(void)
{
	return atomic_clear(&failed);
}

#else

int helio_store_start(void)
{
	return -ENODEV;
}

int helio_store_record(const uint8_t **from)
{
	return 0;
}

int helio_store_name(uint8_t *to, size_t size)
{
	return 0;
}

int helio_store_open(uint8_t **to)
{
	return -ENODEV;
}

int helio_store_close(size_t count)
{
	return -ENODEV;
}

uint32_t helio_store_failed(void)
{
	return 0;
}

#endif
