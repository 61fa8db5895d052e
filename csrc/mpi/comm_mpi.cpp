// comm_mpi.cpp: libfluxir_mpi.so, the engine of fx_comm on MPI. One thread of its own makes every MPI call, so MPI_THREAD_FUNNELED is
// enough; it polls with short sleeps where MPI's own waiting would take a core from the step that computes beside it.
#include <mpi.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "../core/comm.h"

namespace {

constexpr auto kSleep = std::chrono::microseconds(50);
constexpr auto kAbortGrace = std::chrono::seconds(5);

// MPI installs handlers of its own for faults, without SA_ONSTACK, which Go's runtime cannot live with: put back what was there.
class KeepSignals {
 public:
  KeepSignals() {
    for (int s = 1; s < kCount; s++) known_[s] = sigaction(s, nullptr, &old_[s]) == 0;
  }
  ~KeepSignals() {
    for (int s = 1; s < kCount; s++)
      if (known_[s] && s != SIGKILL && s != SIGSTOP) sigaction(s, &old_[s], nullptr);
  }

 private:
  static constexpr int kCount = 32;
  struct sigaction old_[kCount];
  bool known_[kCount] = {};
};

struct Failure : std::exception {
  std::string text;
  explicit Failure(std::string t) : text(std::move(t)) {}
  const char* what() const noexcept override { return text.c_str(); }
};

void check(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw Failure(std::string(call) + ": " + std::string(text, size_t(length)));
}

class Engine {
 public:
  fx_comm_info start() {
    fx_comm_info info{};
    thread_ = std::thread([this] { loop(); });
    post([this, &info] { join(&info); });
    try {
      wait();
    } catch (...) {
      finish();
      throw;
    }
    return info;
  }

  void stop() {
    post([] { check(MPI_Finalize(), "MPI_Finalize"); });
    finish();
  }

  void allreduce(const fx_tensor* tensors, int64_t count) {
    std::vector<std::pair<float*, size_t>> parts;
    size_t total = 0;
    for (int64_t i = 0; i < count; i++) {
      size_t n = 1;
      for (int d = 0; d < tensors[i].rank; d++) n *= size_t(tensors[i].shape[d]);
      parts.emplace_back(static_cast<float*>(tensors[i].data), n);
      total += n;
    }
    if (total > INT_MAX) throw Failure("comm_allreduce: more than 2^31 elements in one bucket");
    post([this, parts, total] {
      bucket_.resize(std::max(bucket_.size(), total));
      float* at = bucket_.data();
      for (auto [data, n] : parts) at = std::copy_n(data, n, at);
      MPI_Request request;
      check(MPI_Iallreduce(MPI_IN_PLACE, bucket_.data(), int(total), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD, &request), "MPI_Iallreduce");
      poll(&request);
      const float* from = bucket_.data();
      for (auto [data, n] : parts) std::copy_n(from, n, data), from += n;
    });
  }

  void broadcast(void* host, int64_t bytes) {
    if (bytes > INT_MAX) throw Failure("comm_broadcast: more than 2^31 bytes");
    post([this, host, bytes] {
      MPI_Request request;
      check(MPI_Ibcast(host, int(bytes), MPI_BYTE, 0, MPI_COMM_WORLD, &request), "MPI_Ibcast");
      poll(&request);
    });
    wait();
  }

  // Waits until all that was posted is done; throws its first failure, again at each later call.
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return jobs_.empty() && !busy_; });
    if (!failure_.empty()) throw Failure(failure_);
  }

  [[noreturn]] void abort(int code) {
    abort_code_ = code;
    aborting_ = true;
    post([] {});
    std::this_thread::sleep_for(kAbortGrace);  // MPI_Abort ends the process long before
    _exit(code);
  }

 private:
  void post(std::function<void()> job) {
    std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
    changed_.notify_all();
  }

  void finish() {
    {
      std::lock_guard lock(mutex_);
      quit_ = true;
      changed_.notify_all();
    }
    thread_.join();
  }

  void loop() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return quit_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      auto job = std::move(jobs_.front());
      jobs_.pop_front();
      busy_ = true;
      lock.unlock();
      std::string failure;
      try {
        if (aborting_) MPI_Abort(MPI_COMM_WORLD, abort_code_);
        if (failure_.empty()) job();
      } catch (const std::exception& e) {
        failure = e.what();
      }
      lock.lock();
      busy_ = false;
      if (failure_.empty()) failure_ = failure;
      changed_.notify_all();
    }
  }

  void poll(MPI_Request* request) {
    for (int done = 0;;) {
      check(MPI_Test(request, &done, MPI_STATUS_IGNORE), "MPI_Test");
      if (done) return;
      if (aborting_) MPI_Abort(MPI_COMM_WORLD, abort_code_);
      std::this_thread::sleep_for(kSleep);
    }
  }

  // MPI_Init and the group's facts.
  static void join(fx_comm_info* info) {
    KeepSignals keep;
    int provided = 0, finalized = 0;
    check(MPI_Finalized(&finalized), "MPI_Finalized");
    if (finalized) throw Failure("this process has left its group and cannot join again");
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
    if (provided < MPI_THREAD_FUNNELED) throw Failure("this MPI does not allow other threads");
    check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    MPI_Comm machine;
    check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine), "MPI_Comm_split_type");
    check(MPI_Comm_rank(MPI_COMM_WORLD, &info->rank), "MPI_Comm_rank");
    check(MPI_Comm_size(MPI_COMM_WORLD, &info->size), "MPI_Comm_size");
    check(MPI_Comm_rank(machine, &info->local_rank), "MPI_Comm_rank");
    check(MPI_Comm_size(machine, &info->local_size), "MPI_Comm_size");
    int first = info->local_rank == 0;
    check(MPI_Allreduce(&first, &info->machines, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD), "MPI_Allreduce");
    cpu_set_t mine;
    sched_getaffinity(0, sizeof mine, &mine);
    std::vector<cpu_set_t> all(size_t(info->local_size));
    check(MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all.data(), sizeof mine, MPI_BYTE, machine), "MPI_Allgather");
    int sharing = 0;
    for (const cpu_set_t& other : all) {
      cpu_set_t both;
      CPU_AND(&both, &mine, &other);
      sharing += CPU_COUNT(&both) > 0;
    }
    info->threads = std::max(1, CPU_COUNT(&mine) / std::max(1, sharing));
    check(MPI_Comm_free(&machine), "MPI_Comm_free");
  }

  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;
  bool busy_ = false, quit_ = false;
  std::string failure_;
  std::vector<float> bucket_;
  std::atomic<bool> aborting_ = false;
  std::atomic<int> abort_code_ = 1;
};

template <class F>
fx_status fenced(char* message, size_t capacity, F&& f) {
  try {
    f();
    return FX_STATUS_OK;
  } catch (const std::exception& e) {
    snprintf(message, capacity, "%s", e.what());
  } catch (...) {
    snprintf(message, capacity, "mpi: unknown exception");
  }
  return FX_STATUS_DEVICE;
}

Engine& engine(void* state) { return *static_cast<Engine*>(state); }

fx_status create(void** state, fx_comm_info* info, char* message, size_t capacity) {
  return fenced(message, capacity, [&] {
    Engine* e = new Engine;
    try {
      *info = e->start();
    } catch (...) {
      delete e;
      throw;
    }
    *state = e;
  });
}

void destroy(void* state) {
  char message[64];
  fenced(message, sizeof message, [&] { engine(state).stop(); });
  delete static_cast<Engine*>(state);
}

fx_status allreduce_start(void* state, const fx_tensor* tensors, int64_t count, char* message, size_t capacity) {
  return fenced(message, capacity, [&] { engine(state).allreduce(tensors, count); });
}

fx_status wait(void* state, char* message, size_t capacity) {
  return fenced(message, capacity, [&] { engine(state).wait(); });
}

fx_status broadcast(void* state, void* host, int64_t bytes, char* message, size_t capacity) {
  return fenced(message, capacity, [&] { engine(state).broadcast(host, bytes); });
}

void abort(void* state, int32_t code) { engine(state).abort(code); }

constexpr fx_comm_engine kTable = {FX_ABI_VERSION, create, destroy, allreduce_start, wait, broadcast, abort};

}  // namespace

extern "C" __attribute__((visibility("default"))) const fx_comm_engine* fx_comm_engine_table() { return &kTable; }
