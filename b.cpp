#pragma GCC target("avx2,fma,f16c")
#define FL_AVX2
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "/tmp/a_b/../wt-linear/csrc/cpu/chunk_kernel.h"
#include "/tmp/a_b/../wt-linear/csrc/cpu/linear_kernel.h"
using namespace fused_logistic;
static double now(){ timespec t; clock_gettime(CLOCK_THREAD_CPUTIME_ID,&t); return t.tv_sec+1e-9*t.tv_nsec; }
int main(){
  int64_t n=1<<17,d=512; float*x=(float*)aligned_alloc(1<<21,n*d*4); for(int64_t i=0;i<n*d;i++) x[i]=(i*2654435761u%1000)*1e-3f-.5f;
  float*w=(float*)aligned_alloc(64,4096); for(int i=0;i<d;i++) w[i]=.01f*(i%7);
  float*y=(float*)malloc(n*4); for(int i=0;i<n;i++) y[i]=i&1;
  int64_t parts=256; static double sums[512]; double*gw=(double*)malloc(parts*d*8); float*scratch=(float*)aligned_alloc(64,4096);
  LinearProblem p; p.loss.numel=n; p.loss.target={y,DType::kFloat32,1,n}; p.loss.scale=1.0/n; p.input=x; p.features=d; p.row_stride=d; p.linear_weight=w; p.rows_per_part=n/parts; p.loss_and_grad_bias=sums; p.grad_weight=gw;
  double bs=1e9,bk=1e9,bl=1e9; volatile float sink;
  for(int rep=0;rep<15;rep++){
    double t=now(); __m256 a[8]={}; for(int64_t i=0;i<n*d;i+=64) for(int k=0;k<8;k++) a[k]=_mm256_add_ps(a[k],_mm256_loadu_ps(x+i+8*k)); for(int k=1;k<8;k++) a[0]=_mm256_add_ps(a[0],a[k]); sink=a[0][0]; double s=now()-t; if(s<bs)bs=s;
    t=now(); run_linear(p,0,parts,Output::kLossSumAndGrad,scratch); s=now()-t; if(s<bk)bk=s;
    t=now(); run_linear(p,0,parts,Output::kLossSum,scratch); s=now()-t; if(s<bl)bl=s;
  }
  double gsum=0; for(int i=0;i<parts*d;i++) gsum+=gw[i];
  printf("sum %.5f ms  step %.5f ms %.3f  loss %.5f ms %.3f  (%.17g)\n",bs*1e3,bk*1e3,bk/bs,bl*1e3,bl/bs,gsum);
}
