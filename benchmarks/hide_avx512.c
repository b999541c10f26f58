// Preloaded into a process, makes its processor one without AVX-512 and AMX, for every library in it.
//
// Some libraries have a switch for the instruction set (oneDNN, MKL, ATen), some have none (MLAS, which ONNX Runtime
// and OpenVINO multiply matrices with), but all of them ask the CPUID instruction. Linux can let that instruction fault
// (arch_prctl ARCH_CPUID, inherited by threads, on processors with "cpuid_fault" in /proc/cpuinfo); the handler here
// executes it and clears bits of the answer. Does nothing where the system cannot do this.
#define _GNU_SOURCE  // names of the registers
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { kArchSetCpuid = 0x1012 };

#define BIT(n) (1u << (n))

// In place of the C library's: GCC, which torch.compile runs, would put its own handler there.
void (*signal(int number, void (*handler)(int)))(int) {
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART}, before;
  if (number == SIGSEGV) return SIG_DFL;
  return sigaction(number, &action, &before) == 0 ? before.sa_handler : SIG_ERR;
}

static void on_fault(int number, siginfo_t* info, void* context) {
  greg_t* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
  const unsigned char* at = (const unsigned char*)registers[REG_RIP];
  (void)info;
  if (at[0] != 0x0f || at[1] != 0xa2) {  // not CPUID but a true fault: let it happen again, without us
    const struct sigaction fatal = {.sa_handler = SIG_DFL};
    sigaction(number, &fatal, 0);
    return;
  }
  const unsigned leaf = (unsigned)registers[REG_RAX], part = (unsigned)registers[REG_RCX];
  unsigned a, b, c, d;
  syscall(SYS_arch_prctl, kArchSetCpuid, 1);
  __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(part));
  syscall(SYS_arch_prctl, kArchSetCpuid, 0);
  if (leaf == 7 && part == 0) {
    b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));  // AVX-512 F, DQ, ..., VL
    c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));                                  // ... VBMI to VPOPCNTDQ
    d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));               // ... FP16; AMX
  }
  if (leaf == 7 && part == 1) a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23));  // AVX-VNNI, AVX512-BF16, AMX, AVX-IFMA
  registers[REG_RAX] = a;
  registers[REG_RBX] = b;
  registers[REG_RCX] = c;
  registers[REG_RDX] = d;
  registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void hide(void) {
  struct sigaction action = {0};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  if (sigaction(SIGSEGV, &action, 0) == 0) syscall(SYS_arch_prctl, kArchSetCpuid, 0);
}
