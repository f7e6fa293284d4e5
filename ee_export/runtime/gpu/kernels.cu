// Interface first; see kernels.py. Host build: g++ -O2 -ffp-contract=off -shared -fPIC -x c++ kernels.cu
// extern "C" void ee_decide(Decide a);        // by value: ctypes struct of kernels.py
// extern "C" void ee_gather_rows(Gather a);
