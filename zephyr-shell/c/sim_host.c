/* SPDX-License-Identifier: Apache-2.0 */
/* Built into native_sim's runner with the host's headers. */
#include <signal.h>
#include <string.h>

#include "sim_host.h"

static volatile sig_atomic_t over_voltage, hang;

static void handle(int signal)
{
	if (signal == SIGUSR1) {
		over_voltage = !over_voltage;
	} else {
		hang = 1;
	}
}

void helio_sim_host_listen(void)
{
	struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};

	(void)sigaction(SIGUSR1, &action, NULL);
	(void)sigaction(SIGUSR2, &action, NULL);
}

int helio_sim_host_over_voltage(void)
{
	return over_voltage;
}

int helio_sim_host_hang(void)
{
	return hang;
}
