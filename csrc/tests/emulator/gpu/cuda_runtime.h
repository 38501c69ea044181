// What kernels and launchers use of CUDA, for a compiler that has none.
#pragma once

#define __global__
#define __launch_bounds__(...)
#define __grid_constant__
