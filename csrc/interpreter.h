// The interpreter, as code that holds no lock of it needs it.
#pragma once

#include "c10d/host.h"

namespace fvd {

/// Never destroyed: works may outlive the module. The first call, which needs the lock, is the
/// module's: two threads that met here later, one with the lock and one in the middle of the
/// import below, would wait for each other.
const c10d_::Host& interpreter();

}  // namespace fvd
