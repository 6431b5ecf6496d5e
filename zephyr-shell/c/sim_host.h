/* SPDX-License-Identifier: Apache-2.0 */
/* Signals of the host, for sim.c; included by both halves, so plain types only. */
#ifndef HELIO_SIM_HOST_H_
#define HELIO_SIM_HOST_H_

void helio_sim_host_listen(void);
int helio_sim_host_over_voltage(void);
int helio_sim_host_hang(void);

#endif
