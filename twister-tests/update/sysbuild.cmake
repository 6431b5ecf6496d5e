# SPDX-License-Identifier: Apache-2.0

foreach(role master slave)
  ExternalZephyrProject_Add(
    APPLICATION app-${role}
    SOURCE_DIR ${APP_DIR}/../../app-${role}
    APP_TYPE MAIN
  )
  # A slave's image comes through the windows that empty seats leave.
  set_config_int(app-${role} CONFIG_HELIO_BUS_SEATS 16)
endforeach()
set_config_int(app-master CONFIG_HELIO_MASTER_SEATS 2)
