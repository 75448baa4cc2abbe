// The headers of torch this room uses, and everything that differs between the supported minors
// (2.11 to 2.15). No other file of the project looks at torch's version.
//
// What needs no switch, because one spelling serves all:
//   - The collectives override the names of 2.11 (_allgather_base, alltoall_base, ...). Newer torch
//     calls all_gather_single, all_to_all_single, ..., whose base versions forward to them.
//   - Options::clone is declared virtual without `override`: torch 2.11 and 2.12 do not know it.
//   - NCCLPreMulSumSupplement is the name of 2.11; newer torch keeps it as an alias.
#pragma once

#include <torch/version.h>

#include <torch/csrc/distributed/c10d/Backend.hpp>

#if TORCH_VERSION_MAJOR != 2 || TORCH_VERSION_MINOR < 11
#error "fastvideo_dist needs torch 2.11 or newer: c10d::Backend of older versions is another class"
#endif
