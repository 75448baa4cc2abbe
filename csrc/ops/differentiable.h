// The same derivatives for every op: a call, its autograd node, and its tangent.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

namespace fvd::ops {

/// `Call` holds an op's arguments beside its tensor, and has
///   at::Tensor operator()(const at::Tensor& x) const      the op, through the dispatcher
///   at::Tensor gradient(const at::Tensor& dy) const       dx, made of ops that have gradients too
///   void save(Saved&) const, static Call load(const Saved&)
///   void check_linear() const          throws if it is not; a call without is linear
///
/// The node is there on every rank whose `x` asks for a gradient, and its backward pass is a
/// collective: all ranks ask, or none. So it is with tangents, those of forward mode.
using Saved = ska::flat_hash_map<std::string, at::IValue>;

template <typename Call>
void check_linear(const Call& call) {
  if constexpr (requires { call.check_linear(); }) call.check_linear();
}

/// Forward mode has one level; that of torch.func has tensors of its own.
constexpr std::uint64_t kForwardLevel = 0;

inline bool has_tangent(const at::Tensor& x) { return x._fw_grad(kForwardLevel).defined(); }

template <typename Call>
class Differentiable : public torch::autograd::Function<Differentiable<Call>> {
 public:
  // All that backward uses is in saved_data, so compiled autograd may trace it.
  static constexpr bool is_traceable = true;

  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const Call& call) {
    call.save(context->saved_data);
    const at::AutoDispatchBelowADInplaceOrView below;
    return call(x);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto call = Call::load(context->saved_data);
    check_linear(call);
    return {call.gradient(gradients[0]), {}};
  }
};

/// What an op does under the key Autograd.
template <typename Call>
at::Tensor differentiable(const at::Tensor& x, const Call& call) {
  if (has_tangent(x)) {
    check_linear(call);
    auto y = differentiable(x._fw_primal(kForwardLevel), call);
    y._set_fw_grad(differentiable(at::Tensor(x._fw_grad(kForwardLevel)), call), kForwardLevel,
                   /*is_inplace_op=*/false);
    return y;
  }
  if (at::GradMode::is_enabled() && x.requires_grad()) return Differentiable<Call>::apply(x, call);
  const at::AutoDispatchBelowADInplaceOrView below;
  return call(x);
}

/// The op of a name, with the signature of its schema: SymInt where a size may be one.
template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace fvd::ops
